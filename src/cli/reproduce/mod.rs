//! `limbeck reproduce`: what others published, run again and held beside their numbers.
//!
//! ```text
//! hinton   section 3 of Hinton, Vinyals and Dean 2015, on MNIST
//! keras    the schedule of Keras's knowledge-distillation example
//! stage    the networks: trained side by side, kept, loaded again
//! report   rows, verdicts, tables
//! ```

mod hinton;
mod keras;
mod report;
mod stage;

use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;

use crate::cli::common::DeviceArgs;
use crate::data::{self, LoadOptions, Split};
use crate::error::{Error, Result};
use report::{Findings, Report};
use stage::Stage;

/// Trains, distils and judges what a paper or a page published, and prints our numbers beside theirs, with
/// what is asked of each and a verdict. Exit code 0 where every row is inside its tolerance, 1 otherwise.
///
/// Example: limbeck reproduce hinton2015 --data mnist --schedule quick --out hinton2015
#[derive(clap::Args)]
pub struct Args {
    /// What to reproduce.
    #[arg(value_enum, required_unless_present = "list")]
    what: Option<What>,
    /// Show what there is.
    #[arg(long)]
    list: bool,
    /// Folder of MNIST's four IDX files (train-images-idx3-ubyte[.gz], …).
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    data: Option<PathBuf>,
    /// How long to train.
    #[arg(long, value_enum, default_value = "quick")]
    schedule: Schedule,
    /// Which rows to judge on. What the schedules fix was chosen by `validation`.
    #[arg(long, value_enum, default_value = "test")]
    judge: Judge,
    /// keras: also train the teacher along with the student, as the page's code does.
    #[arg(long)]
    train_teacher: bool,
    /// Seed of weights, orders and what is drawn in a step.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for report.md, report.json and every network; without it nothing is kept.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the reproduction in --out: networks that are done are not trained again.
    #[arg(long, requires = "out")]
    resume: bool,
    /// Overwrite the reproduction in --out.
    #[arg(long, requires = "out", conflicts_with = "resume")]
    force: bool,
    /// Print one JSON object and no progress.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Hinton, Vinyals and Dean 2015, section 3: MNIST.
    Hinton2015,
    /// The Keras example "Knowledge Distillation": MNIST.
    Keras,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Schedule {
    /// As long as it is worth: hours on a software driver.
    Full,
    /// Within 40 minutes on two cores and a software driver.
    Quick,
    /// Seconds, with tiny networks: shows that everything runs, not how well it does.
    Smoke,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Judge {
    /// The test rows: what is published.
    Test,
    /// A twelfth of the training rows, held back from training (5,000 of MNIST's 60,000).
    Validation,
}

/// Share of the training rows that `--judge validation` holds back.
const HELD_BACK: f64 = 1.0 / 12.0;

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

pub fn run(args: &Args) -> Result<()> {
    let (Some(what), Some(folder)) = (args.what.filter(|_| !args.list), &args.data) else {
        list();
        return Ok(());
    };
    if args.train_teacher && what != What::Keras {
        return Err(Error::usage("--train-teacher", "`reproduce keras`", format!("`{}`", name(what)))
            .with_hint("in the paper the teacher is frozen"));
    }
    let began = Instant::now();
    let split = data::load(folder, &LoadOptions::default())?;
    check(folder, &split)?;
    let judged = match args.judge {
        Judge::Test => split,
        Judge::Validation => {
            let split = split.hold_out(HELD_BACK, args.seed)?;
            Split { test: split.validation, validation: None, ..split }
        }
    };
    let gpu = args.device.open(args.json)?;
    let plan = format!("{} --schedule {} --judge {}", name(what), name(args.schedule), name(args.judge));
    let mut stage = Stage::open(args, &gpu, &judged, &plan)?;
    let findings = match what {
        What::Hinton2015 => hinton::run(&mut stage, args.schedule, args.seed)?,
        What::Keras => keras::run(&mut stage, args.schedule, args.seed, args.train_teacher)?,
    };
    let Findings { source, mut rows, tables, notes } = findings;
    if args.judge == Judge::Validation {
        // The bars are of the test rows.
        rows.iter_mut().for_each(|row| row.inside = None);
    }
    let report = Report {
        schema_version: 1,
        what: name(what),
        schedule: name(args.schedule),
        source,
        command: std::env::args().skip(1).fold("limbeck".to_owned(), |all, arg| format!("{all} {arg}")),
        limbeck: env!("CARGO_PKG_VERSION"),
        adapter: gpu.report.line(),
        seed: args.seed,
        trained_rows: judged.train.rows(),
        judged: name(args.judge),
        judged_rows: stage.test.rows(),
        rows,
        tables,
        notes,
        runs: stage.runs,
        seconds: began.elapsed().as_secs_f64(),
    };
    if let Some(out) = &args.out {
        report.write(out)?;
    }
    report.print(args.json)?;
    report.verdict()
}

/// Ten classes of images, with test rows.
fn check(folder: &std::path::Path, split: &Split) -> Result<()> {
    let train = &split.train;
    let wrong = |at: &str, expected: &str, found: String| {
        Err(Error::data(folder, at, expected, found)
            .with_hint("it is about MNIST: the folder of its IDX files"))
    };
    if train.classes != 10 {
        return wrong("labels", "10 classes", train.classes.to_string());
    }
    if !matches!(train.shape[..], [_, _] | [_, _, 1]) {
        return wrong("rows", "grey images", format!("rows of shape {:?}", train.shape));
    }
    if split.test.as_ref().is_none_or(|t| t.labels.is_none()) {
        return wrong("rows", "test rows with labels", "none".to_owned());
    }
    Ok(())
}

fn list() {
    println!("hinton2015  {}", hinton::SOURCE);
    println!(
        "            teacher, hard and soft students, transfer sets without classes, widths by temperature"
    );
    println!("keras       {}", keras::SOURCE);
    println!("            teacher, student from scratch, distilled with and without T^2, --train-teacher");
    println!("\nlimbeck reproduce NAME --data MNIST_FOLDER [--schedule full|quick|smoke] [--out DIR]");
}
