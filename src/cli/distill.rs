//! `limbeck distill`

use crate::cli::common::{DeviceArgs, NetworkArgs, OptimizerName, OutputArgs, TrainingArgs};
use crate::cli::data::{DataArgs, TrainRowsArgs, TransferArgs};
use crate::cli::job::Job;
use crate::cli::loss::{LossArgs, warn_of_labels};
use crate::cli::seeds::Seeds;
use crate::cli::teachers::{ForeignArgs, TeacherArgs};
use crate::distill::logits::{Logits, Wanted};
use crate::error::{Error, Result};
use crate::train::Replica;

/// Trains a student on a teacher's soft targets and writes DIR/student.safetensors, the student
/// alone, and DIR/metrics.jsonl.
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
    #[arg(long, value_name = "N", conflicts_with = "validation", help_heading = "Distillation",
          value_parser = clap::value_parser!(u64).range(2..=1000))]
    seeds: Option<u64>,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    const FILE: &str = "student.safetensors";
    let classes = args.network.layers.last().copied().unwrap_or(0);
    let usual = args.loss.optimizer().unwrap_or(OptimizerName::Adam);
    let recipe = args.training.recipe_with(usual, args.output.log_every)?;
    let loss = args.loss.loss(classes, args.output.json)?;
    let schedules = args.loss.schedules(args.training.schedules());
    args.teacher.check(&loss)?;
    args.output.check(if args.seeds.is_some() { "seeds.json" } else { FILE })?;
    let seed = args.training.seed;
    let split = args.data.load(loss.uses_labels())?;
    let models = args.teacher.models(&args.foreign, &split.train, classes)?;
    // Logits on disk are of the rows as loaded: before any is held back, left out or added.
    let mut cached = Vec::new();
    if args.teacher.uses_logits() {
        if args.transfer.transfer.is_some() {
            return Err(Error::usage("--transfer", "a live teacher", "--teacher-logits").with_hint(
                "join the rows in one file, unlabelled ones with the label -1, and make its logits",
            ));
        }
        let wanted = Wanted {
            rows: split.train.rows(),
            classes,
            data_sha256: &split.train.content_sha256()?,
            part: "train",
            temperature: loss.temperature,
        };
        cached = args.teacher.logits(&wanted, recipe.batch)?;
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
    let mut split = args.transfer.apply(&args.data, split)?;
    warn_of_labels(&loss, &split.train);
    let start = args.network.start(&args.foreign, &split.train, seed)?;
    args.rows.normalise(&args.data, &mut split, start.normalisation.as_ref())?;
    let gpu = args.device.open(args.output.json)?;
    let teachers = args.teacher.ready(&gpu, models, cached, loss.temperature)?;
    if let Some(count) = args.seeds {
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
            starts: (seed..seed + count).map(start).collect::<Result<_>>()?,
            output: &args.output,
        }
        .run()?;
        return teachers.check_unchanged(&gpu);
    }
    let outcome = Job {
        gpu: &gpu,
        split: &split,
        teacher: teachers.source(&gpu, &split.train, args.rows.device_memory)?,
        teachers: Some(&teachers).filter(|t| !t.is_empty()),
        held_out,
        device_memory: args.rows.device_memory,
        recipe,
        replica: Replica { seed, lr: args.training.lr, loss, schedules, student: start.weights },
        output: &args.output,
        title: "distilling",
        file: FILE,
    }
    .run()?;
    teachers.check_unchanged(&gpu)?;
    outcome.print(args.output.json)
}
