//! `limbeck predict`

use std::io::Write as _;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::common::{DeviceArgs, refuse_existing};
use crate::cli::data::DataArgs;
use crate::cli::logits::Part;
use crate::cli::teachers::ForeignArgs;
use crate::data::{ElementType, npy};
use crate::distill::infer::Inference;
use crate::error::{Error, Result};
use crate::mlp::Mlp;

/// Runs a network over rows, with or without labels, and writes what it says of each.
///
/// Example: limbeck predict --model student/student.safetensors --data new.npy --out probs.csv
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
    /// The network, a safetensors file.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Which rows [default: test where there are some, else train].
    #[arg(long, value_enum)]
    split: Option<Part>,
    /// A .npy file [rows, classes], or a .csv file with a line per row.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What to write [default: logits to .npy, probabilities to .csv].
    #[arg(long, value_enum)]
    values: Option<Values>,
    /// Overwrite --out.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Values {
    /// The network's outputs.
    Logits,
    /// Their softmax at T = 1.
    Probabilities,
}

/// Rows per forward pass.
const BATCH: usize = 1000;

pub fn run(args: &Args) -> Result<()> {
    let csv = match args.out.extension().and_then(|e| e.to_str()) {
        Some("npy") => false,
        Some("csv") => true,
        _ => {
            return Err(Error::usage(
                "--out",
                "a name ending in .npy or .csv",
                args.out.display().to_string(),
            ));
        }
    };
    refuse_existing("--out", &args.out, args.force)?;
    let split = args.data.load(false)?;
    let part = args.split.unwrap_or(if split.test.is_some() { Part::Test } else { Part::Train });
    let rows = part.of(split)?;
    let model = args.foreign.load(&args.model)?;
    let sizes = model.weights.sizes();
    let classes = sizes[sizes.len() - 1];
    if sizes[0] != rows.features() {
        return Err(Error::data(
            &args.model,
            "layers",
            format!("{} inputs, the data's features", rows.features()),
            format!("{sizes:?}"),
        ));
    }
    let own = args.data.normalisation(model.normalisation.as_ref(), &rows);
    let gpu = args.device.open(false)?;
    let network = Mlp::upload(&gpu, "model", &[model.weights])?;
    let names = model.class_names.or_else(|| rows.class_names.clone());
    let name =
        |c: usize| names.as_ref().and_then(|n| n.get(c)).map_or_else(|| c.to_string(), |name| quoted(name));
    let inference = Inference::record_as(&gpu, &network, &rows, Some(&own), BATCH)?;
    let values = args.values.unwrap_or(if csv { Values::Probabilities } else { Values::Logits });

    let failed = |e| Error::io("write", &args.out, e);
    let folder = args.out.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(std::path::Path::new("."));
    let mut out = std::io::BufWriter::new(tempfile::NamedTempFile::new_in(folder).map_err(failed)?);
    if csv {
        let names: Vec<_> = (0..classes).map(name).collect();
        writeln!(out, "prediction,{}", names.join(",")).map_err(failed)?;
    } else {
        out.write_all(&npy::header(ElementType::F32, &[rows.rows(), classes])).map_err(failed)?;
    }
    inference.each_blocking(&gpu, |batch, mut logits| {
        if let Some(at) = logits.iter().position(|v| !v.is_finite()) {
            return Err(Error::Run(format!(
                "row {}: the network's output {} is not a finite number",
                batch.start + at / classes,
                logits[at]
            )));
        }
        for row in logits.chunks_exact_mut(classes) {
            let best = crate::reference::argmax(&row.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
            if values == Values::Probabilities {
                softmax(row);
            }
            if csv {
                let cells: Vec<_> = row.iter().map(f32::to_string).collect();
                writeln!(out, "{},{}", name(best), cells.join(",")).map_err(failed)?;
            } else {
                row.iter().try_for_each(|v| out.write_all(&v.to_le_bytes())).map_err(failed)?;
            }
        }
        Ok(())
    })?;
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&args.out).map_err(|e| failed(e.error))?;
    println!("{} rows  {}", rows.rows(), args.out.display());
    Ok(())
}

/// As a field of a CSV.
fn quoted(name: &str) -> String {
    match name.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", name.replace('"', "\"\"")),
        false => name.to_owned(),
    }
}

fn softmax(row: &mut [f32]) {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|v| f64::from(*v - top).exp()).sum();
    row.iter_mut().for_each(|v| *v = (f64::from(*v - top).exp() / sum) as f32);
}
