//! `limbeck compare`

use std::path::{Path, PathBuf};

use crate::cli::common::DeviceArgs;
use crate::cli::data::DataArgs;
use crate::cli::eval::{Part, check_fit, outputs, rows};
use crate::cli::teachers::{ForeignArgs, load_teacher};
use crate::error::Result;
use crate::mlp::weights::Model;
use crate::report::quality::{Comparison, Quality};

/// Whether two networks differ by more than chance: their errors on the same rows, the rows that only
/// one of them has right, and McNemar's test of these.
///
/// Example: limbeck compare --data mnist student scratch
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
    /// A network: a safetensors file, or a folder that a run wrote.
    a: PathBuf,
    /// The other one.
    b: PathBuf,
    /// Which rows.
    #[arg(long, value_enum, default_value = "test")]
    split: Part,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let (a, b) = (&args.a, &args.b);
    let first = args.foreign.load(a)?;
    let rows = &rows(&args.data, args.split, &first)?;
    let classes = check_fit(a, &first, rows)?;
    let second = load_teacher(&args.foreign, b, rows, classes)?;
    let gpu = args.device.open(args.json)?;
    let labels = rows.labels.as_deref().unwrap_or_default();
    let run = |path: &Path, model: &Model| {
        let z = outputs(&gpu, &args.data, path, model, rows)?;
        let quality = Quality::of(&z, labels, None)?;
        Ok::<_, crate::Error>((z, quality))
    };
    let ((z, one), (v, other)) = (run(a, &first)?, run(b, &second)?);
    let beside = Comparison::of(&z, &v, labels)?;
    if args.json {
        let of = |path: &Path, model: &Model, q: &Quality| {
            serde_json::json!({
                "model": path,
                "weights_sha256": model.weights.sha256(),
                "rows": q.rows,
                "errors": q.errors,
                "accuracy": q.accuracy,
                "nll": q.nll,
            })
        };
        println!(
            "{}",
            serde_json::json!({
                "schema_version": 1,
                "adapter": gpu.report.line(),
                "a": of(a, &first, &one),
                "b": of(b, &second, &other),
                "only_a_right": beside.positive_flips,
                "only_b_right": beside.negative_flips,
                "both_right": beside.both_right,
                "both_wrong": beside.both_wrong,
                "agreement": beside.agreement,
                "kl_a_b": beside.kl_model_reference,
                "kl_b_a": beside.kl_reference_model,
                "mcnemar_p": beside.mcnemar_p,
            })
        );
        return Ok(());
    }
    for (name, path, q) in [("A", a, &one), ("B", b, &other)] {
        println!(
            "{name}  {} errors of {} ({:.2} %), NLL {:.4} nats  {}",
            q.errors,
            q.rows,
            100.0 * (1.0 - q.accuracy),
            q.nll,
            path.display()
        );
    }
    print!("{}", beside.text("A", "B"));
    Ok(())
}
