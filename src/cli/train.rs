//! `limbeck train`

use crate::cli::common::{DataArgs, DeviceArgs, NetworkArgs, OutputArgs, TrainingArgs};
use crate::cli::job::Job;
use crate::distill::step::{Loss, Teacher};
use crate::error::{Error, Result};
use crate::train::Replica;

/// Trains a network on labels and writes DIR/model.safetensors and DIR/metrics.jsonl.
///
/// Example: limbeck train --data mnist --layers 784,1200,1200,10 --epochs 10 --out teacher
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
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
    let split = args.training.split(args.data.load()?)?;
    if split.train.labels.is_none() {
        return Err(Error::usage("--data", "training labels", "rows without labels"));
    }
    let student = args.network.start(&split.train, args.training.seed)?;
    let gpu = args.device.open(args.output.json)?;
    let outcome = Job {
        gpu: &gpu,
        split: &split,
        teacher: Teacher::None,
        teacher_network: None,
        recipe,
        replica: Replica { seed: args.training.seed, lr: args.training.lr, loss, student },
        output: &args.output,
        title: "training",
        file: FILE,
    }
    .run()?;
    outcome.print(args.output.json)
}
