//! `limbeck doctor`

use crate::cli::common::DeviceArgs;
use crate::error::Result;
use crate::verify::doctor;

/// Runs every variant of every kernel on every adapter (or on the one that --adapter names), twice,
/// and holds the results to a reference in double precision. Takes seconds.
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
    let report = doctor::run(&args.device.choice(), |adapter| {
        if !args.json {
            eprintln!("checking {adapter}");
        }
    })?;
    match args.json {
        true => println!("{}", serde_json::json!(report)),
        false => print!("{report}"),
    }
    report.outcome()
}
