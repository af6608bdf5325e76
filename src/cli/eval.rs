//! `limbeck eval`

use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::common::DeviceArgs;
use crate::cli::data::DataArgs;
use crate::cli::job::{evaluate, logits_as};
use crate::cli::teachers::{ForeignArgs, load_teacher};
use crate::error::{Error, Result};
use crate::mlp::Mlp;
use crate::mlp::weights::Model;

/// Measures a network on the test rows (or the training rows): errors, NLL and, with a teacher,
/// the agreement.
///
/// Example: limbeck eval --data mnist --model student/student.safetensors
/// --teacher teacher/model.safetensors
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
enum Part {
    Train,
    Test,
}

pub fn run(args: &Args) -> Result<()> {
    let split = args.data.load(true)?;
    let rows = match args.split {
        Part::Train => split.train,
        Part::Test => split.test.ok_or_else(|| {
            Error::usage("--data", "test rows", "training rows only").with_hint("try --split train")
        })?,
    };
    let model = args.foreign.load(&args.model)?;
    let rows = match &model.class_names {
        Some(names) => rows.with_class_names(names)?,
        None => rows,
    };
    let rows = &rows;
    let sizes = model.weights.sizes();
    let classes = sizes.last().copied().unwrap_or(0);
    if sizes[0] != rows.features() || classes < rows.classes {
        return Err(Error::data(
            &args.model,
            "layers",
            format!("{} inputs and at least {} outputs, as the data has", rows.features(), rows.classes),
            format!("{sizes:?}"),
        ));
    }
    let teacher =
        args.teacher.as_ref().map(|path| load_teacher(&args.foreign, path, rows, classes)).transpose()?;
    let gpu = args.device.open(args.json)?;
    let run = |name: &str, m: &Model| {
        let own = args.data.normalisation(m.normalisation.as_ref(), rows);
        let network = Mlp::upload(&gpu, name, std::slice::from_ref(&m.weights))?;
        logits_as(&gpu, &network, rows, Some(&own))
    };
    let v = teacher.as_ref().map(|m| run("teacher", m)).transpose()?;
    let seen = evaluate(&run("model", &model)?, rows, v.as_ref())?;
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
            })
        );
    } else {
        println!("{}", seen.text());
    }
    Ok(())
}
