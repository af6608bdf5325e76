//! `limbeck eval`

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::cli::common::DeviceArgs;
use crate::cli::data::DataArgs;
use crate::cli::job::{evaluate, logits_as};
use crate::cli::teachers::{ForeignArgs, load_teacher};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::mlp::Mlp;
use crate::mlp::weights::Model;
use crate::reference::Matrix;
use crate::report::quality::{Comparison, Quality};

/// Measures a network on the test rows (or the training rows): errors, NLL, Brier score, calibration
/// and each class; beside a teacher or a baseline also agreement, divergence and what was lost.
///
/// Example: limbeck eval --data mnist --model student/student.safetensors
/// --teacher teacher/model.safetensors --baseline scratch/model.safetensors
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
    /// The network to measure, a safetensors file.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Also compare with this network.
    #[arg(long, value_name = "FILE")]
    teacher: Option<PathBuf>,
    /// And with this one, such as the same network trained from scratch on the labels alone.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Which rows.
    #[arg(long, value_enum, default_value = "test")]
    split: Part,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Part {
    Train,
    Test,
}

/// The rows to measure on, their classes numbered as the network's outputs are.
pub fn rows(data: &DataArgs, part: Part, model: &Model) -> Result<Dataset> {
    let split = data.load(true)?;
    let rows = match part {
        Part::Train => split.train,
        Part::Test => split.test.ok_or_else(|| {
            Error::usage("--data", "test rows", "training rows only").with_hint("try --split train")
        })?,
    };
    match &model.class_names {
        Some(names) => rows.with_class_names(names),
        None => Ok(rows),
    }
}

/// The number of the network's outputs, which the data must have inputs and classes for.
pub fn check_fit(path: &Path, model: &Model, rows: &Dataset) -> Result<usize> {
    let sizes = model.weights.sizes();
    let classes = sizes.last().copied().unwrap_or(0);
    if sizes[0] != rows.features() || classes < rows.classes {
        return Err(Error::data(
            path,
            "layers",
            format!("{} inputs and at least {} outputs, as the data has", rows.features(), rows.classes),
            format!("{sizes:?}"),
        ));
    }
    Ok(classes)
}

/// What the network says of every row.
pub fn outputs(gpu: &Gpu, data: &DataArgs, path: &Path, model: &Model, rows: &Dataset) -> Result<Matrix> {
    let own = data.normalisation(model.normalisation.as_ref(), rows);
    let network = Mlp::upload(gpu, "model", std::slice::from_ref(&model.weights))?;
    let z = logits_as(gpu, &network, rows, Some(&own))?;
    match (0..z.rows).find(|r| z.row(*r).iter().any(|v| !v.is_finite())) {
        Some(row) => Err(Error::Run(format!(
            "{}: row {row}: an output of the network is not a finite number",
            path.display()
        ))),
        None => Ok(z),
    }
}

pub fn run(args: &Args) -> Result<()> {
    let model = args.foreign.load(&args.model)?;
    let rows = &rows(&args.data, args.split, &model)?;
    let classes = check_fit(&args.model, &model, rows)?;
    let other = |path: &Option<PathBuf>| {
        let load = |path: &PathBuf| Ok((path.clone(), load_teacher(&args.foreign, path, rows, classes)?));
        path.as_ref().map(load).transpose()
    };
    let (teacher, baseline) = (other(&args.teacher)?, other(&args.baseline)?);
    let gpu = args.device.open(args.json)?;
    let run = |path: &Path, model: &Model| outputs(&gpu, &args.data, path, model, rows);
    let z = run(&args.model, &model)?;
    let v = teacher.as_ref().map(|(path, m)| run(path, m)).transpose()?;
    let seen = evaluate(&z, rows, v.as_ref())?;
    let labels = rows.labels.as_deref().unwrap_or_default();
    let quality = Quality::of(&z, labels, rows.class_names.as_deref())?;
    let beside = |other: Option<Matrix>| other.map(|v| Comparison::of(&z, &v, labels)).transpose();
    let teacher = beside(v)?;
    let baseline = beside(baseline.as_ref().map(|(path, m)| run(path, m)).transpose()?)?;
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "schema_version": 1,
                "adapter": gpu.report.line(),
                "model": args.model,
                "weights_sha256": model.weights.sha256(),
                "parameters": model.weights.parameters(),
                "evaluation": seen,
                "quality": quality,
                "teacher": teacher,
                "baseline": baseline,
            })
        );
        return Ok(());
    }
    print!("{}", quality.text());
    for (name, comparison) in [("teacher", teacher), ("baseline", baseline)] {
        if let Some(c) = comparison {
            print!("\nBeside the {name}:\n{}", c.text("model", name));
        }
    }
    Ok(())
}
