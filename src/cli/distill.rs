//! `limbeck distill`

use crate::cli::common::{DeviceArgs, OutputArgs};
use crate::cli::job::{Job, Outcome, fitted, run_on};
use crate::cli::keep::KeepArgs;
use crate::cli::lesson::{LessonArgs, Prepared};
use crate::cli::options::Resolved;
use crate::cli::seeds::Seeds;
use crate::distill::step::Loss;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::environment::Load;
use crate::train::run_dir::Record;
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
    lesson: LessonArgs,
    /// Train so many students side by side, from --seed upwards, and as many from scratch on the labels
    /// alone: mean, 95 % interval and paired t-test of the test errors. Writes DIR/seed-{S},
    /// DIR/scratch-{S} and DIR/seeds.json.
    #[arg(long, value_name = "N", conflicts_with_all = ["validation", "resume"], help_heading = "Training",
          value_parser = clap::value_parser!(u64).range(2..=1000))]
    seeds: Option<u64>,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    pub fn load(&self) -> Load {
        self.lesson.load(&self.lesson.network.layers, self.seeds.unwrap_or(1) as usize)
    }

    /// Whether the result is to be printed as JSON.
    pub fn json(&self) -> bool {
        self.output.call.json
    }

    /// Refuses values that make no sense, before any file is read.
    pub fn check(&self) -> Result<()> {
        self.prepared(true).map(|_| ())
    }

    /// Recipe and loss, checked.
    fn prepared(&self, quiet: bool) -> Result<(Recipe, Loss)> {
        let recipe = self.lesson.recipe(self.output.log_every)?;
        self.keep.settings()?;
        let loss = self.lesson.loss.loss(self.lesson.network.layers.last().copied().unwrap_or(0), quiet)?;
        self.lesson.teacher.check(&loss)?;
        Ok((recipe, loss))
    }
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
    let ((recipe, loss), lesson) = (args.prepared(args.json())?, &args.lesson);
    let Prepared { split, held_out, models, cached, start } =
        lesson.prepare(&recipe, &lesson.network.layers, &[loss])?;
    let (seed, lr, device_memory) = (lesson.training.seed, lesson.training.lr, lesson.rows.device_memory);
    let attempt = |gpu: &Gpu, again: bool| {
        let teachers = lesson.teacher.ready(gpu, &models, cached.clone(), loss.temperature)?;
        let student = start.weights.clone();
        let recipe = fitted(&recipe, gpu, split.train.rows(), &lesson.network.layers, &models, 1);
        let job = Job {
            gpu,
            split: &split,
            teacher: teachers.source(gpu, &split.train, &recipe, device_memory, false, args.json())?,
            teachers: Some(&teachers).filter(|t| !t.is_empty()),
            held_out,
            device_memory,
            recipe,
            replica: Replica { seed, lr, loss, schedules: lesson.schedules(), student },
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
    let ((recipe, loss), lesson) = (args.prepared(args.json())?, &args.lesson);
    let Prepared { split, models, cached, .. } = lesson.prepare(&recipe, &lesson.network.layers, &[loss])?;
    let gpu = args.device.open(args.json())?;
    let layers = &lesson.network.layers;
    let recipe = fitted(&recipe, &gpu, split.train.rows(), layers, &models, count as usize);
    let teachers = lesson.teacher.ready(&gpu, &models, cached, loss.temperature)?;
    let (first, device_memory) = (lesson.training.seed, lesson.rows.device_memory);
    let start = |seed| Ok((seed, lesson.start(&lesson.network.layers, &split.train, seed)?.weights));
    Seeds {
        gpu: &gpu,
        split: &split,
        teacher: teachers.source(&gpu, &split.train, &recipe, device_memory, true, args.json())?,
        teachers: &teachers,
        recipe,
        device_memory,
        loss,
        lr: lesson.training.lr,
        schedules: lesson.schedules(),
        starts: (first..first + count).map(start).collect::<Result<_>>()?,
        output: &args.output,
    }
    .run()?;
    teachers.check_unchanged(&gpu)
}
