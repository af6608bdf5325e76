//! `limbeck bench`

use std::collections::BTreeMap;

use clap::Subcommand;
use serde::Deserialize;

use crate::bench::step::{DispatchTime, Pair};
use crate::bench::{Record, head, matmul, peak, step};
use crate::cli::common::{DeviceArgs, in_another_process};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::environment::Load;
use crate::report::table;

/// Measures kernels and the whole step against what the device can do at best.
///
/// Every result is checked against the f64 reference before it is timed. Run it when nothing else
/// is running; the fractions and ratios are taken within one run. On lavapipe pairs are measured in
/// processes of their own, with the threads and the vector width that runs of their size have.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// Only these variants, such as subgroup8-32x64 or tile-64x64/4 (K split in 4).
    #[arg(long, value_delimiter = ',', global = true)]
    variant: Vec<String>,
    /// Only these shapes or groups of shapes, such as square, hinton/student-l0, small.
    #[arg(long, value_delimiter = ',', global = true)]
    shapes: Vec<String>,
    /// Print one JSON object.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Subcommand)]
enum What {
    /// FMA throughput and copy bandwidth.
    Peak,
    /// Every matmul variant over named shapes.
    Matmul,
    /// The loss head over batch x classes.
    Head,
    /// A whole distillation step.
    Step {
        /// Also print where the time of one step goes, dispatch by dispatch.
        #[arg(long)]
        compare: bool,
    },
    /// All of them.
    All,
}

impl Args {
    /// Of the pairs whose steps are measured, if nothing else is and they agree on what the driver is told.
    pub fn load(&self) -> Option<Load> {
        let mut loads = step::pairs(&self.shapes).map(Pair::load);
        let first = matches!(self.what, What::Step { .. }).then(|| loads.next())??;
        loads.all(|load| load.settings() == first.settings()).then_some(first)
    }
}

pub fn run(args: &Args) -> Result<()> {
    let gpu = args.device.open(args.json)?;
    check_names(args)?;
    let (best, mut records) = peak::measure(&gpu)?;
    let all = matches!(args.what, What::All);
    if all || matches!(args.what, What::Matmul) {
        records.extend(matmul::run(&gpu, &best, &matmul::shapes(&args.shapes), &args.variant)?);
    }
    if all || matches!(args.what, What::Head) {
        records.extend(head::run(&gpu, &best, &args.shapes, &args.variant)?);
    }
    let mut profiles = Vec::new();
    if all || matches!(args.what, What::Step { .. }) {
        let compare = matches!(args.what, What::Step { compare: true });
        let (apart, here): (Vec<_>, Vec<_>) =
            step::pairs(&args.shapes).partition(|pair| is_apart(&gpu, pair));
        if !here.is_empty() {
            let square = matmul::shapes(&["square/1024".to_owned()])[0].question;
            let operands = matmul::Operands::new(&gpu, square)?;
            // As a run would compute it.
            let choice = square.answer(&gpu);
            let rate = || Ok(2.0 * 1024f64.powi(3) / operands.time(&gpu, choice)?.median);
            records.extend(step::run(&gpu, &best, rate, &here)?);
        }
        if compare {
            for pair in here {
                let share = pair.with(gpu.share(pair.replicas));
                profiles.push((pair.name.to_owned(), step::Bench::new(&gpu, share)?.profile(&best)?));
            }
        }
        for alike in apart.chunk_by(|a, b| a.load().settings() == b.load().settings()) {
            let measured = measure_apart(args, compare, alike)?;
            records.extend(measured.records.into_iter().filter(|r| r.bench == "step"));
            profiles.extend(measured.dispatches);
        }
    }
    if args.json {
        let profiles: serde_json::Map<_, _> =
            profiles.into_iter().map(|(name, rows)| (name, serde_json::json!(rows))).collect();
        println!(
            "{}",
            serde_json::json!({
                "schema_version": 1,
                "adapter": gpu.report,
                "records": records,
                "dispatches": profiles,
            })
        );
        return Ok(());
    }
    print!("{}", table::render(&lines(&records)));
    for (name, rows) in profiles {
        println!();
        match rows {
            None => println!("{name}: the device has no timestamps, so dispatches cannot be told apart"),
            Some(rows) => {
                let devices = records.iter().find(|r| r.shape == name).and_then(|r| r.devices);
                let title = match devices.filter(|n| *n > 1) {
                    Some(n) => format!("{name}, one of {n} devices"),
                    None => name,
                };
                print!("{}", table::render(&profile_lines(&title, &rows)));
            }
        }
    }
    Ok(())
}

/// What another process of the harness printed.
#[derive(Deserialize)]
struct Measured {
    records: Vec<Record>,
    dispatches: BTreeMap<String, Option<Vec<DispatchTime>>>,
}

/// Whether a run of the pair's size would tell lavapipe something that this process has not.
fn is_apart(gpu: &Gpu, pair: &Pair) -> bool {
    let is_unset = |(name, _): &(&str, &str)| std::env::var_os(name).is_none();
    gpu.is_lavapipe() && pair.load().settings().iter().any(is_unset)
}

/// Measures pairs in a process of their own, whose environment is that of a run of their size. It measures
/// its own peaks.
fn measure_apart(args: &Args, compare: bool, pairs: &[&Pair]) -> Result<Measured> {
    let failed = |e: &dyn std::fmt::Display| Error::Run(format!("limbeck bench of pairs apart: {e}"));
    let names: Vec<_> = pairs.iter().map(|p| p.name).collect();
    let names = names.join(",");
    let mut call = vec!["bench", "step", "--json", "--shapes", &names];
    call.extend(compare.then_some("--compare"));
    let output = in_another_process(&call, &args.device, None).map_err(|e| failed(&e))?;
    match output.status.success() {
        true => serde_json::from_slice(&output.stdout).map_err(|e| failed(&e)),
        false => Err(failed(&output.status)),
    }
}

fn check_names(args: &Args) -> Result<()> {
    let known = |name: &String| {
        let group = |s: &str| s.split('/').next() == Some(name.as_str()) || s == name;
        matmul::SHAPES.iter().any(|s| group(s.name))
            || head::SHAPES.iter().any(|s| group(s.0))
            || step::PAIRS.iter().any(|p| p.name == name)
    };
    match args.shapes.iter().find(|n| !known(n)) {
        None => Ok(()),
        Some(name) => {
            let names: Vec<_> = matmul::SHAPES
                .iter()
                .map(|s| s.name)
                .chain(head::SHAPES.iter().map(|s| s.0))
                .chain(step::PAIRS.iter().map(|p| p.name))
                .collect();
            Err(Error::usage("--shapes", names.join(", "), format!("`{name}`")))
        }
    }
}

fn lines(records: &[Record]) -> Vec<Vec<String>> {
    let heading = [
        "shape",
        "variant",
        "median ms",
        "min ms",
        "GFLOP/s",
        "GB/s",
        "of peak",
        "of copy",
        "x plain",
        "steps/s",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let number = |v: Option<f64>, digits: usize| v.map_or(String::new(), |v| format!("{v:.digits$}"));
    for r in records {
        rows.push(vec![
            r.shape.clone(),
            r.variant.clone(),
            format!("{:.3}", r.median_ms),
            format!("{:.3}", r.min_ms),
            number(r.gflops, 1),
            number(r.gbps, 2),
            number(r.fraction_of_peak, 3),
            number(r.fraction_of_copy, 3),
            number(r.ratio_to_plain, 1),
            number(r.steps_per_second, 1),
        ]);
    }
    rows
}

fn profile_lines(name: &str, rows: &[step::DispatchTime]) -> Vec<Vec<String>> {
    let total: f64 = rows.iter().map(|r| r.us).sum();
    let floor: f64 = rows.iter().map(|r| r.floor_us).sum();
    let line = |label: &str, kernel: &str, us: f64, floor: f64| {
        let share = format!("{:.1} %", 100.0 * us / total);
        vec![label.to_owned(), kernel.to_owned(), format!("{us:.1}"), share, format!("{floor:.1}")]
    };
    let heading = [&format!("{name}: dispatch"), "kernel", "us", "share", "floor us"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|r| line(&r.label, &r.kernel, r.us, r.floor_us)));
    lines.push(line("all", "", total, floor));
    lines
}
