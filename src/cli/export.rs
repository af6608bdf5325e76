//! `limbeck export`

use std::path::PathBuf;

use crate::cli::common::{FormArgs, refuse_existing};
use crate::cli::teachers::ForeignArgs;
use crate::error::Result;
use crate::mlp::onnx;

/// Writes a network in the form that another program takes: ONNX, or safetensors of another layout.
///
/// Example: limbeck export --model student/student.safetensors --onnx student.onnx --softmax
#[derive(clap::Args)]
pub struct Args {
    /// The network, a safetensors file.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    #[command(flatten)]
    foreign: ForeignArgs,
    /// An ONNX file: input `x` [N, features] with values as stored in the data, normalised inside.
    #[arg(long, value_name = "FILE", required_unless_present = "safetensors")]
    onnx: Option<PathBuf>,
    /// Output `probabilities` at T = 1 instead of `logits`.
    #[arg(long, requires = "onnx")]
    softmax: bool,
    /// ONNX operator set, 13 to 21.
    #[arg(long, default_value_t = onnx::Options::default().opset, value_name = "N")]
    opset: i64,
    /// A safetensors file with --dtype and --keras-layout.
    #[arg(long, value_name = "FILE")]
    safetensors: Option<PathBuf>,
    #[command(flatten)]
    form: FormArgs,
    /// Overwrite what is there.
    #[arg(long)]
    force: bool,
}

pub fn run(args: &Args) -> Result<()> {
    for (name, path) in [("--onnx", &args.onnx), ("--safetensors", &args.safetensors)] {
        if let Some(path) = path {
            refuse_existing(name, path, args.force)?;
        }
    }
    let model = args.foreign.load(&args.model)?;
    let sizes: Vec<_> = model.weights.sizes().iter().map(usize::to_string).collect();
    if let Some(path) = &args.onnx {
        onnx::export(&model, path, onnx::Options { softmax: args.softmax, opset: args.opset })?;
        let inputs = match model.normalisation {
            Some(_) => "values as stored, normalised inside",
            None => "inputs as the first layer takes them: the model names no normalisation",
        };
        println!("onnx         {}  {}  opset {}  x: {inputs}", path.display(), sizes.join("-"), args.opset);
    }
    if let Some(path) = &args.safetensors {
        model.save(path, args.form.options())?;
        println!("safetensors  {}  {}", path.display(), sizes.join("-"));
    }
    Ok(())
}
