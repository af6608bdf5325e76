//! `limbeck logits`

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::cli::common::DeviceArgs;
use crate::cli::data::DataArgs;
use crate::cli::teachers::{ForeignArgs, check_class_names};
use crate::data::{Dataset, Split};
use crate::distill::infer::Inference;
use crate::distill::logits::{Manifest, Shard, ShardWriter, TopK, is_done, teacher_sha256};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::mlp::Mlp;
use crate::mlp::weights::{Model, StoredType};
use crate::report::progress::Progress;

/// Writes a teacher's logits for every row once, for `limbeck distill --teacher-logits DIR`.
///
/// The rows are cut into shards, each written whole or not at all; a rerun writes what is missing. In a
/// Slurm job array each task takes its own shard, so that any number of machines share the work:
/// sbatch --array=0-31 --wrap 'limbeck logits --teacher t.safetensors --data big.npy --out logits'
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// The teacher's weights, a safetensors file.
    #[arg(long, value_name = "FILE")]
    teacher: PathBuf,
    #[command(flatten)]
    foreign: ForeignArgs,
    /// Which rows.
    #[arg(long, value_enum, default_value = "train")]
    split: Part,
    /// The rows that `limbeck distill --transfer` will add behind the training rows.
    #[arg(long, value_name = "PATH", help_heading = "Data")]
    transfer: Option<PathBuf>,
    /// Folder for the shards.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Write shard i of n only, i from 0 [default: by SLURM_ARRAY_TASK_ID and _COUNT, else all].
    #[arg(long, value_name = "I/N", conflicts_with = "shards", help_heading = "Output")]
    shard: Option<Shard>,
    /// Write the rows as this many shards, one after the other.
    #[arg(long, value_name = "N", help_heading = "Output", value_parser = clap::value_parser!(u32).range(1..100_000))]
    shards: Option<u32>,
    /// How logits are stored. f32 keeps the bits that a live teacher gives.
    #[arg(long, value_enum, default_value = "f32", help_heading = "Output")]
    dtype: Type,
    /// Keep the K largest logits of a row and the mass of the rest, spread evenly.
    #[arg(long, value_name = "K", requires = "temperature", help_heading = "Output")]
    top_k: Option<usize>,
    /// Temperature of the run that will use them; only --top-k needs it.
    #[arg(long, value_name = "T", help_heading = "Output")]
    temperature: Option<f64>,
    /// Rows per forward pass: the batch size of the run that will use them gives its bits.
    #[arg(long, default_value_t = 128, help_heading = "Output")]
    batch_size: usize,
    /// Replace shards of other teachers or other data.
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// Print one JSON object and no progress.
    #[arg(long, help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Part {
    Train,
    Validation,
    Test,
}

#[derive(Clone, Copy, ValueEnum)]
enum Type {
    F32,
    F16,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }

    /// These rows of the data.
    pub fn of(self, split: Split) -> Result<Dataset> {
        let rows = match self {
            Self::Train => Some(split.train),
            Self::Validation => split.validation,
            Self::Test => split.test,
        };
        rows.ok_or_else(|| {
            Error::usage("--split", "rows that the data has", format!("no {} rows", self.name()))
        })
    }
}

#[derive(serde::Serialize)]
struct Report {
    schema_version: u32,
    adapter: String,
    out: PathBuf,
    rows: usize,
    written: usize,
    skipped: usize,
    teacher_sha256: String,
    data_sha256: String,
    /// Largest bound and largest value of KL(teacher || what is stored) of a row, in nats.
    top_k_bound: Option<f64>,
    top_k_divergence: Option<f64>,
}

/// Which shards this process writes.
fn shards(args: &Args) -> Result<Vec<Shard>> {
    let slurm = || Shard::from_slurm(|name| std::env::var(name).ok());
    let one = match (args.shard, args.shards) {
        (Some(shard), _) => Some(shard),
        (None, None) => slurm()?,
        (None, Some(_)) => None,
    };
    let count = args.shards.unwrap_or(1) as usize;
    Ok(one.map_or_else(|| (0..count).map(|index| Shard { index, count }).collect(), |s| vec![s]))
}

fn top_k(args: &Args, classes: usize) -> Result<Option<TopK>> {
    let Some(k) = args.top_k else { return Ok(None) };
    let temperature = args.temperature.unwrap_or(1.0);
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(Error::usage("--temperature", "a number above 0", temperature.to_string()));
    }
    if k == 0 || k >= classes {
        return Err(Error::usage("--top-k", format!("1 to {}", classes - 1), k.to_string()));
    }
    Ok(Some(TopK { k, temperature }))
}

pub fn run(args: &Args) -> Result<()> {
    let shards = shards(args)?;
    if args.batch_size == 0 {
        return Err(Error::usage("--batch-size", "at least 1", "0"));
    }
    let mut rows = args.split.of(args.data.load(false)?)?;
    if let Some(path) = &args.transfer {
        if !matches!(args.split, Part::Train) {
            return Err(Error::usage("--transfer", "the training rows before it", args.split.name()));
        }
        let loaded = rows.rows();
        rows = rows.with_unlabelled(args.data.load_transfer(path)?, loaded)?;
    }
    let model = args.foreign.load(&args.teacher)?;
    check_class_names(&args.teacher, &model, &rows)?;
    let sizes = model.weights.sizes();
    let classes = sizes[sizes.len() - 1];
    if sizes[0] != rows.features() {
        return Err(Error::data(
            &args.teacher,
            "layers",
            format!("{} inputs, the data's features", rows.features()),
            sizes[0].to_string(),
        ));
    }
    let own = args.data.normalisation(model.normalisation.as_ref(), &rows);
    let gpu = args.device.open(args.json)?;
    let manifest = Manifest {
        schema_version: 1,
        producer: format!("limbeck {}", env!("CARGO_PKG_VERSION")),
        rows: [0, 0],
        total_rows: rows.rows(),
        part: args.split.name().to_owned(),
        classes,
        teacher_sha256: teacher_sha256(&model.weights, &own)?,
        data_sha256: rows.content_sha256()?,
        batch_size: args.batch_size.min(rows.rows()),
        adapter: gpu.report.line(),
        top_k: top_k(args, classes)?,
    };
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io("create", &args.out, e))?;
    let model = Model { normalisation: Some(own), ..model };
    let report = write_all(args, &gpu, &rows, &model, &manifest, &shards)?;
    print(args, &report)
}

fn write_all(
    args: &Args,
    gpu: &Gpu,
    rows: &Dataset,
    model: &Model,
    manifest: &Manifest,
    shards: &[Shard],
) -> Result<Report> {
    let network = Mlp::upload(gpu, "teacher", std::slice::from_ref(&model.weights))?;
    let inference =
        Inference::record_as(gpu, &network, rows, model.normalisation.as_ref(), manifest.batch_size)?;
    let dtype = match args.dtype {
        Type::F32 => StoredType::F32,
        Type::F16 => StoredType::F16,
    };
    let total: usize = shards.iter().map(|s| s.rows(rows.rows()).len()).sum();
    let mut progress = Progress::new("logits", total as u64, args.json);
    let mut report = Report {
        schema_version: 1,
        adapter: manifest.adapter.clone(),
        out: args.out.clone(),
        rows: total,
        written: 0,
        skipped: 0,
        teacher_sha256: manifest.teacher_sha256.clone(),
        data_sha256: manifest.data_sha256.clone(),
        top_k_bound: None,
        top_k_divergence: None,
    };
    let mut done = 0;
    for shard in shards {
        let range = shard.rows(rows.rows());
        let manifest = Manifest { rows: [range.start, range.end], ..manifest.clone() };
        let path = shard.path(&args.out);
        if keep(&path, &manifest, args.force)? {
            report.skipped += 1;
            done += range.len();
            continue;
        }
        let mut writer = ShardWriter::create(&path, manifest, dtype)?;
        inference.each_of_blocking(gpu, range, |batch, logits| {
            writer.push(&logits)?;
            done += batch.len();
            progress.at(done as u64, total as u64, None, "rows");
            Ok(())
        })?;
        if let Some([bound, divergence]) = writer.finish()? {
            report.top_k_bound = Some(report.top_k_bound.unwrap_or(0.0).max(bound));
            report.top_k_divergence = Some(report.top_k_divergence.unwrap_or(0.0).max(divergence));
        }
        report.written += 1;
    }
    progress.finish();
    Ok(report)
}

fn keep(path: &Path, manifest: &Manifest, force: bool) -> Result<bool> {
    match is_done(path, manifest) {
        Err(_) if force => Ok(false),
        other => other,
    }
}

fn print(args: &Args, report: &Report) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string(report).map_err(|e| Error::Run(e.to_string()))?);
        return Ok(());
    }
    println!(
        "rows     {} in {} shards written, {} already there",
        report.rows, report.written, report.skipped
    );
    println!("teacher  {}", report.teacher_sha256);
    println!("data     {}", report.data_sha256);
    if let (Some(bound), Some(divergence)) = (report.top_k_bound, report.top_k_divergence) {
        println!("top-k    KL(teacher || stored) of a row: at most {divergence:.3e} nats, bound {bound:.3e}");
    }
    println!("logits   {}", report.out.display());
    Ok(())
}
