//! `limbeck tune`

use std::path::PathBuf;

use crate::bench::tune;
use crate::cli::common::DeviceArgs;
use crate::distill::step_flops;
use crate::error::{Error, Result};
use crate::gpu::environment::Load;
use crate::mlp::weights::{check_sizes, write_atomically};

/// Measures the matmul variants on the products of a configuration and writes the fastest of each
/// into a profile, which runs name with --profile.
///
/// A run never times kernels itself: the same profile gives the same bits.
///
/// Example: limbeck tune --teacher-layers 784,1200,1200,10 --layers 784,800,800,10 --out h100.json
#[derive(clap::Args)]
pub struct Args {
    /// Layer sizes of the trained network.
    #[arg(long, value_delimiter = ',', required = true, value_name = "SIZES")]
    layers: Vec<usize>,
    /// Layer sizes of the teacher, where there is one.
    #[arg(long, value_delimiter = ',', value_name = "SIZES")]
    teacher_layers: Vec<usize>,
    /// Rows per step.
    #[arg(long, default_value_t = 128)]
    batch_size: usize,
    /// Students side by side.
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    /// The profile to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite the profile if it exists.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    /// Of a step of the configuration: what is measured runs as a run does.
    pub fn load(&self) -> Load {
        let asked = self.teacher_layers.windows(2).map(|s| s[0] as f64 * s[1] as f64).sum();
        Load::of(self.replicas, |replicas| step_flops(asked, &self.layers, replicas, self.batch_size))
    }
}

pub fn run(args: &Args) -> Result<()> {
    check_sizes(&args.layers)?;
    if !args.teacher_layers.is_empty() {
        check_sizes(&args.teacher_layers)?;
    }
    if args.batch_size == 0 || args.replicas == 0 {
        return Err(Error::usage("--batch-size and --replicas", "at least 1", "0"));
    }
    if args.out.exists() && !args.force {
        return Err(Error::usage("--out", "a new file", format!("{} exists", args.out.display()))
            .with_hint("overwrite with --force"));
    }
    let gpu = args.device.open(false)?;
    // The last share may be smaller.
    let share = gpu.share(args.replicas);
    let shares = [share, (args.replicas - 1) % share + 1];
    let questions = tune::questions(&args.teacher_layers, &args.layers, args.batch_size, &shares);
    let profile = tune::run(&gpu, &questions, |question, best, ms, standard| {
        eprintln!("{}: {best} {ms:.3} ms ({:.2} x the built-in choice)", question.key(), standard / ms);
    })?;
    write_atomically(&args.out, profile.to_json().as_bytes())?;
    println!("{}: {} products", args.out.display(), profile.answers.len());
    Ok(())
}
