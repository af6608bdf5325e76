//! The command line: one file per subcommand.

mod bench;
mod common;
mod compare;
mod data;
mod demo;
mod devices;
mod distill;
mod doctor;
mod eval;
mod export;
mod job;
mod logits;
mod loss;
mod predict;
mod seeds;
mod teachers;
mod train;
mod tune;

use clap::{Parser, Subcommand};

use crate::error::Result;

/// Knowledge distillation of multi-layer perceptrons on any GPU.
///
/// A teacher network is trained on labels; a smaller student is then trained to match the
/// teacher's softened outputs. Everything runs in hand-written WGSL kernels on the Vulkan, Metal
/// or DX12 device of this machine, or on a software driver where there is none.
#[derive(Parser)]
#[command(name = "limbeck", version, max_term_width = 100)]
#[command(after_help = "Start with `limbeck demo`: no files, no network, under a minute.\n\
    Exit codes: 0 done, 1 the run failed, 2 usage, 3 no usable adapter, 4 bad data or model file, \
    5 device lost or out of memory.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the main job on embedded data: does distillation help, and by how much?
    Demo(demo::Args),
    /// List the adapters of this machine and the one that a run would take.
    Devices(devices::Args),
    /// Check every kernel on every adapter of this machine against a reference.
    Doctor(doctor::Args),
    /// Train a network on labels: the teacher, or a student for comparison.
    Train(train::Args),
    /// Train a student on a teacher's soft targets and, if wanted, the labels.
    Distill(distill::Args),
    /// Measure a network on a data set: errors, calibration, classes; beside a teacher or a baseline.
    Eval(eval::Args),
    /// Compare two networks on the same rows: McNemar's test.
    Compare(compare::Args),
    /// Write a teacher's logits once, for any number of students: shards, job arrays, top-k.
    Logits(logits::Args),
    /// Run a network over rows and write logits or probabilities.
    Predict(predict::Args),
    /// Write a network as ONNX, or as safetensors of another type or layout.
    Export(export::Args),
    /// Measure the kernels and the step on this device.
    Bench(bench::Args),
    /// Find the fastest kernels for a configuration on this device, once.
    Tune(tune::Args),
}

/// Parses the process's arguments and runs the command. Usage errors of the parser leave the
/// process with code 2, `--help` and `--version` with 0.
///
/// # Errors
/// Whatever the command met.
pub fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Distill(args) => distill::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tune(args) => tune::run(&args),
    }
}
