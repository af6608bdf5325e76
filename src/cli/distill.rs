//! `limbeck distill`

use std::path::PathBuf;

use crate::cli::common::{DataArgs, DeviceArgs, NetworkArgs, OutputArgs, TrainingArgs};
use crate::cli::job::Job;
use crate::data::Dataset;
use crate::distill::step::{Loss, Teacher};
use crate::error::{Error, Result};
use crate::mlp::Mlp;
use crate::mlp::weights::Weights;
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
    /// The teacher's weights, a safetensors file. It is never changed.
    #[arg(long, value_name = "FILE", help_heading = "Distillation")]
    teacher: PathBuf,
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
        let loss =
            Loss { temperature: self.temperature, hard_weight, soft_weight, smoothing: self.label_smoothing };
        loss.check()?;
        Ok(loss)
    }
}

/// The teacher's weights, checked against the data and the student's classes.
pub fn load_teacher(path: &std::path::Path, data: &Dataset, classes: usize) -> Result<Weights> {
    let weights = Weights::load(path, None)?;
    let sizes = weights.sizes();
    let bad = |what: &str, expected: usize, found: usize| {
        Error::data(path, "layers", format!("{expected} {what}"), format!("{found}"))
    };
    match (sizes.first(), sizes.last()) {
        (Some(&inputs), _) if inputs != data.features() => {
            Err(bad("inputs, the data's features", data.features(), inputs))
        }
        (_, Some(&outputs)) if outputs != classes => {
            Err(bad("outputs, the student's classes", classes, outputs))
        }
        _ => Ok(weights),
    }
}

pub fn run(args: &Args) -> Result<()> {
    const FILE: &str = "student.safetensors";
    let recipe = args.training.recipe(args.output.log_every)?;
    let loss = args.loss()?;
    args.output.check(FILE)?;
    let split = args.training.split(args.data.load()?)?;
    if split.train.labels.is_none() && loss.hard_weight > 0.0 {
        return Err(Error::usage("--hard-weight", "0 for rows without labels", loss.hard_weight.to_string()));
    }
    let student = args.network.start(&split.train, args.training.seed)?;
    let classes = args.network.layers.last().copied().unwrap_or(0);
    let teacher = load_teacher(&args.teacher, &split.train, classes)?;
    let before = teacher.sha256();
    let gpu = args.device.open(args.output.json)?;
    let network = Mlp::upload(&gpu, "teacher", &[teacher])?;
    let outcome = Job {
        gpu: &gpu,
        split: &split,
        teacher: Teacher::Live(network.clone()),
        teacher_network: Some(&network),
        recipe,
        replica: Replica { seed: args.training.seed, lr: args.training.lr, loss, student },
        output: &args.output,
        title: "distilling",
        file: FILE,
    }
    .run()?;
    // Frozen by construction: nothing holds a gradient for it. Shown all the same.
    let after = network.read_blocking(&gpu)?.swap_remove(0).sha256();
    if before != after {
        return Err(Error::Run(format!("the teacher changed: sha256 {before} before, {after} after")));
    }
    outcome.print(args.output.json)
}
