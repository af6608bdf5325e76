//! `limbeck replay`

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::Parsed;
use crate::cli::common::DeviceArgs;
use crate::cli::options;
use crate::error::{Error, Result};
use crate::mlp::weights::{Model, ReadOptions};
use crate::report::metrics_file::MetricsFile;
use crate::train::run_dir::{Device, Record, SUMMARY};

/// Runs a finished run again from its folder and compares the weights, bit for bit.
///
/// Where version, device, driver or profile are not those of the record, other bits are no fault:
/// then it says what is different and how far the weights have drifted.
#[derive(clap::Args)]
pub struct Args {
    /// The run's folder.
    run: PathBuf,
    /// Keep the second run in this folder [default: a temporary one].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the result as one JSON object and no progress.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What the two runs are to each other.
#[derive(serde::Serialize)]
struct Report {
    schema_version: u32,
    steps: u64,
    /// The weights are the same bits.
    same_weights: bool,
    /// The metrics files are the same bytes.
    same_metrics: bool,
    weights_sha256: [String; 2],
    /// What the bits may depend on and is different now.
    different: Vec<String>,
    /// Where the weights differ.
    drift: Option<Drift>,
}

#[derive(serde::Serialize)]
struct Drift {
    /// The largest absolute difference of a weight.
    max_abs: f64,
    /// The norm of the difference over the norm of the first run's weights.
    relative_norm: f64,
}

/// What a summary says that a replay needs.
#[derive(serde::Deserialize)]
struct Summary {
    model: PathBuf,
    weights_sha256: String,
    steps: u64,
}

impl Summary {
    fn load(run: &Path) -> Result<Self> {
        let path = run.join(SUMMARY);
        let bytes = fs::read(&path).map_err(|e| {
            Error::io("read", &path, e)
                .with_hint("only a run that has ended can be replayed; go on with --resume")
        })?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::data(&path, format!("line {}", e.line()), "a run's summary", e.to_string()))
    }

    /// The model of the run in `run`, wherever that was when it was written.
    fn model(&self, run: &Path) -> Result<Model> {
        let name = self.model.file_name().unwrap_or_default();
        Model::load(&run.join(name), &ReadOptions::default())
    }
}

impl Args {
    /// The run's command, where it can be read.
    pub(super) fn parsed(&self) -> Option<Parsed> {
        let record = Record::load(&self.run).ok()?;
        crate::cli::parse(self.again(&record, Path::new("again"))).ok()
    }

    /// The arguments that run `record` again into `out`.
    fn again(&self, record: &Record, out: &Path) -> Vec<OsString> {
        let mut call: Vec<OsString> = vec!["limbeck".into(), record.command.clone().into()];
        call.extend(["--config".into(), self.run.join(options::FILE).into()]);
        call.extend(["--out".into(), out.into()]);
        call.extend(self.device.given());
        call
    }
}

pub fn run(args: &Args) -> Result<()> {
    let record = Record::load(&args.run)?;
    let first = Summary::load(&args.run)?;
    let temporary = tempfile::tempdir().map_err(|e| Error::io("create", std::env::temp_dir(), e))?;
    let out = args.out.clone().unwrap_or_else(|| temporary.path().join("replay"));

    let mut call = args.again(&record, &out);
    call.extend(["--max-steps".into(), first.steps.to_string().into()]);
    call.extend(["--checkpoint-every".into(), "never".into()]);
    if args.json {
        call.push("--json".into());
    }
    let (second, now) = crate::cli::rerun(call, &record)?;

    let different = differences(&record, &now);
    let same_weights = first.weights_sha256 == second;
    let read = |run: &Path| fs::read(run.join(MetricsFile::NAMES[0])).ok();
    let drift = match same_weights {
        true => None,
        false => Some(drift(&first.model(&args.run)?, &Summary::load(&out)?.model(&out)?)?),
    };
    let report = Report {
        schema_version: 1,
        steps: first.steps,
        same_weights,
        same_metrics: read(&args.run) == read(&out),
        weights_sha256: [first.weights_sha256, second],
        different,
        drift,
    };
    if !report.same_weights && report.different.is_empty() {
        report.print(args.json)?;
        return Err(Error::Run("other weights on the same device, driver, profile and version".to_owned()));
    }
    report.print(args.json)
}

impl Report {
    fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self).map_err(|e| Error::Run(e.to_string()))?);
            return Ok(());
        }
        let same = |is: bool| if is { "the same" } else { "different" };
        println!("steps      {}", self.steps);
        println!("weights    {}: sha256 {}", same(self.same_weights), self.weights_sha256[1]);
        println!("metrics    {}", same(self.same_metrics));
        for what in &self.different {
            println!("different  {what}");
        }
        if let Some(drift) = &self.drift {
            println!(
                "drift      largest {:.3e}, norm {:.3e} of the weights'",
                drift.max_abs, drift.relative_norm
            );
        }
        Ok(())
    }
}

/// What the bits may depend on and is not as it was.
fn differences(before: &Record, now: &Record) -> Vec<String> {
    let device = |d: &Device| {
        let profile = d.profile_sha256.as_deref().unwrap_or("none").to_owned();
        [
            ("adapter", d.adapter.clone()),
            ("backend", d.backend.clone()),
            ("driver", d.driver.clone()),
            ("subgroup", format!("{:?}", d.subgroup)),
            ("profile", profile),
            ("avoided kernels", d.avoided.join(", ")),
        ]
    };
    let facts = |r: &Record| [vec![("version", r.limbeck.clone())], device(&r.device).to_vec()].concat();
    let pairs = facts(before).into_iter().zip(facts(now));
    pairs.filter(|(a, b)| a != b).map(|((what, a), (_, b))| format!("{what}: {a} then, {b} now")).collect()
}

fn drift(a: &Model, b: &Model) -> Result<Drift> {
    let values = |m: &Model| -> Vec<f64> {
        let layers = m.weights.layers.iter().flat_map(|l| l.weight.iter().chain(&l.bias));
        layers.map(|v| f64::from(*v)).collect()
    };
    let (a, b) = (values(a), values(b));
    if a.len() != b.len() {
        return Err(Error::usage("replay", format!("{} weights", a.len()), format!("{}", b.len())));
    }
    let differences = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    Ok(Drift {
        max_abs: differences.clone().fold(0.0, f64::max),
        relative_norm: norm(&mut differences.clone()) / norm(&mut a.iter().copied()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::matmul::Activation;
    use crate::mlp::weights::{Layer, Weights};

    #[test]
    fn drift_is_the_largest_difference_and_the_norms_ratio() {
        let model = |weight: Vec<f32>| Model {
            weights: Weights {
                activation: Activation::Relu,
                layers: vec![Layer { outputs: 2, inputs: 1, weight, bias: vec![0.0, 0.0] }],
            },
            normalisation: None,
            class_names: None,
            activation_known: true,
        };
        let d = drift(&model(vec![3.0, 4.0]), &model(vec![3.5, 3.0])).expect("one form");
        assert!((d.max_abs - 1.0).abs() < 1e-12);
        assert!((d.relative_norm - 1.25_f64.sqrt() / 5.0).abs() < 1e-12);
    }
}
