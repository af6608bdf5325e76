//! `limbeck train`

use crate::cli::common::{DeviceArgs, NetworkArgs, OutputArgs, TrainingArgs};
use crate::cli::data::{DataArgs, TrainRowsArgs};
use crate::cli::job::{Job, Outcome, fitted, run_on};
use crate::cli::keep::{GuardArgs, KeepArgs};
use crate::cli::options::Resolved;
use crate::cli::teachers::ForeignArgs;
use crate::distill::step::{Loss, Teacher};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::environment::Load;
use crate::train::run_dir::Record;
use crate::train::{Recipe, Replica};

/// Trains a network on labels and writes a run's folder with model.safetensors in it.
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
    guard: GuardArgs,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    pub fn load(&self) -> Load {
        self.training.load(0.0, &self.network.layers, 1)
    }

    /// Whether the result is to be printed as JSON.
    pub fn json(&self) -> bool {
        self.output.call.json
    }

    /// Refuses values that make no sense, before any file is read.
    pub fn check(&self) -> Result<()> {
        self.training.recipe(self.output.log_every)?;
        self.keep.settings()?;
        self.guard.guard()?;
        self.loss().map(|_| ())
    }

    fn loss(&self) -> Result<Loss> {
        let loss = Loss { smoothing: self.label_smoothing, ..Loss::HARD };
        loss.check()?;
        Ok(loss)
    }
}

/// Trains; where `expected` is given, only on what that record was on.
pub fn run(args: &Args, resolved: &Resolved, expected: Option<&Record>) -> Result<Outcome> {
    const FILE: &str = "model.safetensors";
    args.check()?;
    let recipe = args.training.recipe(args.output.log_every)?;
    let recipe = Recipe { guard: args.guard.guard()?, ..recipe };
    let loss = args.loss()?;
    args.output.check(FILE)?;
    let split = args.data.load(true)?;
    let seed = args.training.seed;
    let mut split = args.rows.labelled_only(args.training.split(split)?, seed)?;
    let start = args.network.start(&args.foreign, &split.train, seed)?;
    args.rows.normalise(&args.data, &mut split, start.normalisation.as_ref())?;
    let attempt = |gpu: &Gpu, again: bool| {
        let job = Job {
            gpu,
            split: &split,
            teacher: Teacher::None,
            teachers: None,
            held_out: false,
            device_memory: args.rows.device_memory,
            recipe: fitted(&recipe, gpu, split.train.rows(), &args.network.layers, &[], 1),
            replica: Replica {
                seed,
                lr: args.training.lr,
                loss,
                schedules: args.training.schedules(),
                student: start.weights.clone(),
            },
            keep: &args.keep,
            output: &args.output,
            resolved,
            expected,
            title: "training",
            file: FILE,
        };
        job.run(again)
    };
    run_on(&args.device, &args.output.call, attempt)
}
