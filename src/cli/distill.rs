//! `limbeck distill`

use std::sync::Arc;

use crate::cli::common::{DeviceArgs, NetworkArgs, OptimizerName, OutputArgs, TrainingArgs};
use crate::cli::data::{DataArgs, TrainRowsArgs, TransferArgs};
use crate::cli::job::{Job, Outcome, run_on};
use crate::cli::keep::{GuardArgs, KeepArgs};
use crate::cli::loss::{LossArgs, warn_of_labels};
use crate::cli::options::Resolved;
use crate::cli::seeds::Seeds;
use crate::cli::teachers::{ForeignArgs, TeacherArgs};
use crate::data::{Dataset, Split};
use crate::distill::logits::{Logits, Wanted};
use crate::distill::step::Loss;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::mlp::weights::Model;
use crate::train::run_dir::Record;
use crate::train::schedule::Schedules;
use crate::train::{Recipe, Replica};

/// Trains a student on a teacher's soft targets and writes a run's folder with student.safetensors,
/// the student alone, in it.
///
/// The loss is hard_weight * CE(labels) + soft_weight * T^2 * KL(teacher || student), both logits
/// divided by T in the second term, both terms means over the batch; --loss takes other soft terms,
/// --preset other projects' conventions.
///
/// Example: limbeck distill --data mnist --teacher teacher/model.safetensors
/// --layers 784,800,800,10 --temperature 20 --alpha 0.1 --out student
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    rows: TrainRowsArgs,
    #[command(flatten)]
    transfer: TransferArgs,
    #[command(flatten)]
    teacher: TeacherArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
    #[command(flatten)]
    loss: LossArgs,
    /// Train so many students side by side, from --seed upwards, and as many from scratch on the labels
    /// alone: mean, 95 % interval and paired t-test of the test errors. Writes DIR/seed-{S},
    /// DIR/scratch-{S} and DIR/seeds.json.
    #[arg(long, value_name = "N", conflicts_with_all = ["validation", "resume"], help_heading = "Distillation",
          value_parser = clap::value_parser!(u64).range(2..=1000))]
    seeds: Option<u64>,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    training: TrainingArgs,
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
    /// Whether the result is to be printed as JSON.
    pub fn json(&self) -> bool {
        self.output.call.json
    }

    /// Refuses values that make no sense, before any file is read.
    pub fn check(&self) -> Result<()> {
        self.recipe()?;
        self.keep.settings()?;
        self.teacher.check(&self.loss(true)?)
    }

    fn classes(&self) -> usize {
        self.network.layers.last().copied().unwrap_or(0)
    }

    fn recipe(&self) -> Result<Recipe> {
        let usual = self.loss.optimizer().unwrap_or(OptimizerName::Adam);
        let recipe = self.training.recipe_with(usual, self.output.log_every)?;
        let recipe = Recipe { guard: self.guard.guard()?, features: self.loss.features(), ..recipe };
        recipe.check()?;
        Ok(recipe)
    }

    fn loss(&self, quiet: bool) -> Result<Loss> {
        self.loss.loss(self.classes(), quiet)
    }
}

/// What a run needs that no device is needed for.
struct Prepared {
    recipe: Recipe,
    loss: Loss,
    schedules: Schedules,
    split: Split,
    /// The validation rows, if any, were held back from the training rows.
    held_out: bool,
    models: Vec<Model>,
    /// Teachers' logits on disk, of the rows that are walked and of the test rows.
    cached: Arc<[Vec<Logits>; 2]>,
    start: Model,
}

fn prepare(args: &Args) -> Result<Prepared> {
    args.check()?;
    let recipe = args.recipe()?;
    let loss = args.loss(args.json())?;
    let schedules = args.loss.schedules(args.training.schedules());
    let classes = args.classes();
    let seed = args.training.seed;
    let split = args.data.load(loss.uses_labels())?;
    let models = args.teacher.models(&args.foreign, &split.train, classes)?;
    let (loaded, transfer) = (split.train.rows(), args.transfer.load(&args.data)?);
    // Logits on disk are of the rows as loaded, before any is held back or left out: the training rows and
    // behind them the transfer set.
    let (mut cached, mut cached_test) = (Vec::new(), Vec::new());
    if args.teacher.uses_logits() {
        let wanted = Wanted {
            rows: loaded + transfer.as_ref().map_or(0, Dataset::rows),
            classes,
            data_sha256: &split.train.content_sha256_with(transfer.as_ref())?,
            part: "train",
            temperature: loss.temperature,
        };
        cached = args.teacher.logits(&wanted, recipe.batch)?;
        cached_test = args.teacher.logits_of_test(split.test.as_ref(), &wanted)?;
        let cut = |l: &Logits| l.manifest.as_ref().is_some_and(|m| m.top_k.is_some());
        if !schedules.temperature.is_constant() && cached.iter().any(cut) {
            return Err(Error::usage(
                "--temperature-schedule",
                "logits of every class",
                "the top-k of some T",
            ));
        }
    }
    let held_out = split.validation.is_none();
    let split = args.rows.hide_labels(args.training.split(split)?, seed)?;
    let mut split = args.transfer.apply(split, transfer, loaded)?;
    warn_of_labels(&loss, &split.train);
    let start = args.network.start(&args.foreign, &split.train, seed)?;
    args.rows.normalise(&args.data, &mut split, start.normalisation.as_ref())?;
    let cached = Arc::new([cached, cached_test]);
    Ok(Prepared { recipe, loss, schedules, split, held_out, models, cached, start })
}

/// Trains and prints the result.
pub fn run_and_print(args: &Args, resolved: &Resolved) -> Result<()> {
    match args.seeds {
        Some(count) => run_seeds(args, count),
        None => run(args, resolved, None)?.print(args.json()),
    }
}

/// Trains; where `expected` is given, only on what that record was on.
pub fn run(args: &Args, resolved: &Resolved, expected: Option<&Record>) -> Result<Outcome> {
    const FILE: &str = "student.safetensors";
    args.output.check(FILE)?;
    let Prepared { recipe, loss, schedules, split, held_out, models, cached, start } = prepare(args)?;
    let attempt = |gpu: &Gpu, again: bool| {
        let teachers = args.teacher.ready(gpu, &models, cached.clone(), loss.temperature)?;
        let student = start.weights.clone();
        let job = Job {
            gpu,
            split: &split,
            teacher: teachers.source(gpu, &split.train, args.rows.device_memory)?,
            teachers: Some(&teachers).filter(|t| !t.is_empty()),
            held_out,
            device_memory: args.rows.device_memory,
            recipe: recipe.clone(),
            replica: Replica { seed: args.training.seed, lr: args.training.lr, loss, schedules, student },
            keep: &args.keep,
            output: &args.output,
            resolved,
            expected,
            title: "distilling",
            file: FILE,
        };
        let outcome = job.run(again)?;
        teachers.check_unchanged(gpu)?;
        Ok(outcome)
    };
    run_on(&args.device, &args.output.call, attempt)
}

fn run_seeds(args: &Args, count: u64) -> Result<()> {
    args.output.check("seeds.json")?;
    let Prepared { recipe, loss, schedules, split, models, cached, .. } = prepare(args)?;
    let gpu = args.device.open(args.json())?;
    let teachers = args.teacher.ready(&gpu, &models, cached, loss.temperature)?;
    let first = args.training.seed;
    let start = |seed| Ok((seed, args.network.start(&args.foreign, &split.train, seed)?.weights));
    Seeds {
        gpu: &gpu,
        split: &split,
        teacher: teachers.source(&gpu, &split.train, args.rows.device_memory)?,
        teachers: &teachers,
        recipe,
        device_memory: args.rows.device_memory,
        loss,
        lr: args.training.lr,
        schedules,
        starts: (first..first + count).map(start).collect::<Result<_>>()?,
        output: &args.output,
    }
    .run()?;
    teachers.check_unchanged(&gpu)
}
