//! `limbeck train`

use crate::cli::common::{DeviceArgs, NetworkArgs, OutputArgs, TrainingArgs};
use crate::cli::data::{DataArgs, TrainRowsArgs};
use crate::cli::job::Job;
use crate::cli::teachers::ForeignArgs;
use crate::distill::step::{Loss, Teacher};
use crate::error::Result;
use crate::train::Replica;

/// Trains a network on labels and writes DIR/model.safetensors and DIR/metrics.jsonl.
///
/// Example: limbeck train --data mnist --layers 784,1200,1200,10 --epochs 10 --out teacher
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    rows: TrainRowsArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    training: TrainingArgs,
    /// Share of the target spread evenly over the classes.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", help_heading = "Training")]
    label_smoothing: f64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    const FILE: &str = "model.safetensors";
    let recipe = args.training.recipe(args.output.log_every)?;
    let loss = Loss { smoothing: args.label_smoothing, ..Loss::HARD };
    loss.check()?;
    args.output.check(FILE)?;
    let split = args.data.load(true)?;
    let seed = args.training.seed;
    let mut split = args.rows.labelled_only(args.training.split(split)?, seed)?;
    let start = args.network.start(&args.foreign, &split.train, seed)?;
    args.rows.normalise(&args.data, &mut split, start.normalisation.as_ref())?;
    let gpu = args.device.open(args.output.json)?;
    let outcome = Job {
        gpu: &gpu,
        split: &split,
        teacher: Teacher::None,
        teachers: None,
        held_out: false,
        device_memory: args.rows.device_memory,
        recipe,
        replica: Replica {
            seed,
            lr: args.training.lr,
            loss,
            schedules: args.training.schedules(),
            student: start.weights,
        },
        output: &args.output,
        title: "training",
        file: FILE,
    }
    .run()?;
    outcome.print(args.output.json)
}
