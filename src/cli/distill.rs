//! `limbeck distill`

use crate::cli::common::{DeviceArgs, NetworkArgs, OutputArgs, TrainingArgs};
use crate::cli::data::{DataArgs, TrainRowsArgs, TransferArgs};
use crate::cli::job::Job;
use crate::cli::seeds::Seeds;
use crate::cli::teachers::{ForeignArgs, TeacherArgs};
use crate::distill::logits::Wanted;
use crate::distill::step::Loss;
use crate::error::{Error, Result};
use crate::train::Replica;

/// Trains a student on a teacher's soft targets and writes DIR/student.safetensors, the student
/// alone, and DIR/metrics.jsonl.
///
/// The loss is hard_weight * CE(labels) + soft_weight * T^2 * KL(teacher || student), both logits
/// divided by T in the second term, both terms means over the batch.
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
    /// Both logits are divided by T in the soft term.
    #[arg(long, default_value_t = 4.0, value_name = "T", help_heading = "Distillation")]
    temperature: f64,
    /// Keras's alpha: hard_weight = ALPHA and soft_weight = 1 - ALPHA [default: 0.1].
    #[arg(long, conflicts_with_all = ["hard_weight", "soft_weight"], help_heading = "Distillation")]
    alpha: Option<f64>,
    /// Weight of the cross-entropy with the labels.
    #[arg(
        long,
        requires = "soft_weight",
        help_heading = "Distillation",
        value_name = "WEIGHT",
        allow_negative_numbers = true
    )]
    hard_weight: Option<f64>,
    /// Weight of T^2 times the divergence from the teacher.
    #[arg(
        long,
        requires = "hard_weight",
        help_heading = "Distillation",
        value_name = "WEIGHT",
        allow_negative_numbers = true
    )]
    soft_weight: Option<f64>,
    /// Share of the hard target spread evenly over the classes.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", help_heading = "Distillation")]
    label_smoothing: f64,
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

impl Args {
    fn loss(&self) -> Result<Loss> {
        let (hard_weight, soft_weight) = match (self.hard_weight, self.soft_weight, self.alpha) {
            (Some(hard), Some(soft), _) => (hard, soft),
            (_, _, alpha) => {
                let alpha = alpha.unwrap_or(0.1);
                if !(0.0..=1.0).contains(&alpha) {
                    return Err(Error::usage("--alpha", "a number from 0 to 1", alpha.to_string()));
                }
                (alpha, 1.0 - alpha)
            }
        };
        let loss = Loss {
            temperature: self.temperature,
            hard_weight,
            soft_weight,
            smoothing: self.label_smoothing,
            ..Loss::HARD
        };
        loss.check()?;
        Ok(loss)
    }
}

pub fn run(args: &Args) -> Result<()> {
    const FILE: &str = "student.safetensors";
    let recipe = args.training.recipe(args.output.log_every)?;
    let loss = args.loss()?;
    args.output.check(if args.seeds.is_some() { "seeds.json" } else { FILE })?;
    let seed = args.training.seed;
    let split = args.data.load(loss.hard_weight > 0.0)?;
    let classes = args.network.layers.last().copied().unwrap_or(0);
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
    }
    let held_out = split.validation.is_none();
    let split = args.rows.hide_labels(args.training.split(split)?, seed)?;
    let mut split = args.transfer.apply(&args.data, split)?;
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
        teachers: Some(&teachers),
        held_out,
        device_memory: args.rows.device_memory,
        recipe,
        replica: Replica { seed, lr: args.training.lr, loss, student: start.weights },
        output: &args.output,
        title: "distilling",
        file: FILE,
    }
    .run()?;
    teachers.check_unchanged(&gpu)?;
    outcome.print(args.output.json)
}
