//! `limbeck doctor`

use serde::Deserialize;

use crate::cli::common::{DeviceArgs, in_another_process};
use crate::error::{Error, Result};
use crate::gpu::environment::{self, WIDE};
use crate::verify::doctor::{self, Examined, Report};

/// Runs every variant of every kernel on every adapter (or on the one that --adapter names), twice,
/// and holds the results to a reference in double precision. Takes seconds. lavapipe is looked at twice where
/// large steps have it compute in wider vectors than small ones.
///
/// Exits with 0 where all is right, 1 where a kernel that runs need is wrong, 3 where there is no adapter.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let mut report = doctor::run(&args.device.choice(), |adapter| {
        if !args.json {
            eprintln!("checking {adapter}");
        }
    })?;
    let (name, _) = WIDE;
    if environment::has_wide_vectors() && std::env::var_os(name).is_none() {
        examine_wide(args, &mut report)?;
    }
    match args.json {
        true => println!("{}", serde_json::json!(report)),
        false => print!("{report}"),
    }
    report.outcome()
}

/// Has another process, which tells the driver so from its start, look at lavapipe as large steps have it.
fn examine_wide(args: &Args, report: &mut Report) -> Result<()> {
    #[derive(Deserialize)]
    struct Found {
        adapters: Vec<Examined>,
    }
    let (name, width) = WIDE;
    let lavapipe = report.adapters.iter().map(|a| &a.adapter).find(|a| a.is_lavapipe());
    let Some(adapter) = lavapipe else { return Ok(()) };
    if !args.json {
        eprintln!("checking {} in vectors of {width} bits, as large steps have them", adapter.name);
    }
    let failed = |e: &dyn std::fmt::Display| Error::Run(format!("limbeck doctor with {name}={width}: {e}"));
    let device = args.device.on(adapter.index);
    let output = in_another_process(&["doctor", "--json"], &device, Some(WIDE)).map_err(|e| failed(&e))?;
    // Where it found something wrong it says so in the report and by its status; without a report only by that.
    let found: Found = serde_json::from_slice(&output.stdout).map_err(|_| failed(&output.status))?;
    report.add(found.adapters);
    Ok(())
}
