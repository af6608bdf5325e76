//! The command line: one file per subcommand.

mod bench;
mod cohort;
mod common;
mod compare;
mod config;
mod data;
mod demo;
mod devices;
mod distill;
mod doctor;
mod eval;
mod export;
mod grid;
mod job;
mod keep;
mod lesson;
mod logits;
mod loss;
mod options;
mod predict;
mod regularize;
mod repair;
mod replay;
mod reproduce;
mod seeds;
mod sweep;
mod teachers;
mod train;
mod tune;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::cli::options::Resolved;
use crate::error::{Error, Result};
use crate::gpu::environment::{self, Load};
use crate::train::run_dir::Record;

/// Knowledge distillation of multi-layer perceptrons on any GPU.
///
/// A teacher network is trained on labels; a smaller student is then trained to match the
/// teacher's softened outputs. Everything runs in hand-written WGSL kernels on the Vulkan, Metal
/// or DX12 device of this machine, or on a software driver where there is none.
#[derive(Parser)]
#[command(name = "limbeck", version, max_term_width = 100)]
#[command(after_help = "Start with `limbeck demo`: no files, no network, under a minute.\n\
    Exit codes: 0 done, 1 the run failed, 2 usage, 3 no usable adapter, 4 bad data or model file, \
    5 device lost or out of memory, 130 interrupted with a checkpoint saved.")]
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
    Train(Box<train::Args>),
    /// Train a student on a teacher's soft targets and, if wanted, the labels.
    Distill(Box<distill::Args>),
    /// Distil a whole grid of students side by side and tell which settings are best.
    Sweep(Box<sweep::Args>),
    /// Run a finished run again from its folder and compare the weights.
    Replay(replay::Args),
    /// Measure a network on a data set: errors, calibration, classes; beside a teacher or a baseline.
    Eval(eval::Args),
    /// Compare two networks on the same rows: McNemar's test.
    Compare(compare::Args),
    /// Repair the output biases of a network that learned without some classes.
    RepairBias(repair::Args),
    /// Write a teacher's logits once, for any number of students: shards, job arrays, top-k.
    Logits(logits::Args),
    /// Run what a paper or a page published, and print our numbers beside theirs.
    Reproduce(reproduce::Args),
    /// Run a network over rows and write logits or probabilities.
    Predict(predict::Args),
    /// Write a network as ONNX, or as safetensors of another type or layout.
    Export(export::Args),
    /// Measure the kernels and the step on this device.
    Bench(bench::Args),
    /// Check a file of options, or show what a run would be told.
    Config(config::Args),
    /// Find the fastest kernels for a configuration on this device, once.
    Tune(tune::Args),
}

impl Command {
    /// About how much each step of the command is, for those that are mostly steps of one size.
    fn load(&self) -> Option<Load> {
        match self {
            Self::Demo(args) => Some(args.load()),
            Self::Train(args) => Some(args.load()),
            Self::Distill(args) => Some(args.load()),
            Self::Sweep(args) => args.load(),
            Self::Tune(args) => Some(args.load()),
            Self::Bench(args) => args.load(),
            _ => None,
        }
    }
}

/// Parses the process's arguments and runs the command. Usage errors of the parser leave the
/// process with code 2, `--help` and `--version` with 0. To be called when there is no other thread: it
/// prepares the environment of drivers.
///
/// # Errors
/// Whatever the command met.
pub fn run() -> Result<()> {
    let parsed = parse(std::env::args_os().collect())?;
    parsed.prepare();
    let Parsed { command, resolved, .. } = parsed;
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Train(args) => train::run(&args, &resolved?, None)?.print(args.json()),
        Command::Distill(args) => distill::run_and_print(&args, &resolved?),
        Command::Sweep(args) => sweep::run(&args, &resolved?),
        Command::Replay(args) => replay::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::RepairBias(args) => repair::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Reproduce(args) => reproduce::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Tune(args) => tune::run(&args),
    }
}

/// What arguments and the file they name amount to.
struct Parsed {
    command: Command,
    /// What it is told in the end.
    resolved: Result<Resolved>,
    profile: Option<PathBuf>,
}

impl Parsed {
    /// Tells drivers what suits the command, or the run that it makes again.
    fn prepare(&self) {
        match &self.command {
            Command::Replay(args) if let Some(again) = args.parsed() => again.prepare(),
            command => environment::prepare(command.load(), self.profile.as_deref()),
        }
    }
}

/// Parses arguments, the program's name first. What clap refuses ends the process.
fn parse(args: Vec<OsString>) -> Result<Parsed> {
    let mut cli = Cli::command();
    let expanded = options::expand(&cli, args)?;
    let parsed = cli.try_get_matches_from_mut(&expanded.args);
    let parsed = parsed.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (parsed, matches) = parsed.unwrap_or_else(|error| {
        if let Some(file) = expanded.file.filter(|_| error.use_stderr()) {
            eprintln!("note: the options of {} are among the arguments", file.display());
        }
        error.exit()
    });
    let own = matches.subcommand().and_then(|(name, own)| Some((cli.find_subcommand(name)?, own)));
    let (command, own) = own.ok_or_else(|| Error::usage("command", "one", "none"))?;
    // Not every command has a device.
    let profile = own.try_get_one::<PathBuf>("profile").ok().flatten().cloned();
    Ok(Parsed { command: parsed.command, resolved: Resolved::of(command, own), profile })
}

/// Runs `train` or `distill` as `args` say, which has to be on what `record` was on. Gives the hash of
/// the weights and the record of this run.
fn rerun(args: Vec<OsString>, record: &Record) -> Result<(String, Record)> {
    let Parsed { command, resolved, .. } = parse(args)?;
    let outcome = match command {
        Command::Train(args) => train::run(&args, &resolved?, Some(record))?,
        Command::Distill(args) => distill::run(&args, &resolved?, Some(record))?,
        _ => return Err(Error::usage("the run's command", "train or distill", &record.command)),
    };
    let folder = outcome.model.parent().unwrap_or(std::path::Path::new("."));
    Ok((outcome.weights_sha256.clone(), Record::load(folder)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(line: &str) -> Option<Load> {
        let args = ["limbeck"].into_iter().chain(line.split_whitespace());
        parse(args.map(OsString::from).collect()).expect("a command").command.load()
    }

    fn alone(line: &str) -> bool {
        load(line).is_some_and(|load| load.alone())
    }

    #[test]
    fn a_step_is_as_large_as_rows_weights_and_students_make_it() {
        // Twice 64 x 32 and thrice 32 x 10 multiply-adds a row.
        let small = 2.0 * 64.0 * (2.0 * 2048.0 + 3.0 * 320.0);
        let one = Some(Load { all: small, share: small });
        assert_eq!(load("train --data d --layers 64,32,10 --batch-size 64 --out o"), one);
        let micro = "train --data d --layers 64,32,10 --batch-size 128 --accumulate 2 --out o";
        assert_eq!(load(micro), one);

        let dir = tempfile::tempdir().expect("a folder");
        let teacher = dir.path().join("teacher.safetensors");
        std::fs::write(&teacher, vec![0; 4000]).expect("written");
        let taught =
            format!("--data d --teacher {} --layers 64,32,10 --batch-size 64 --out o", teacher.display());
        // Every device asks the teacher.
        let of =
            |students| Some(Load::of(students, |students| 2.0 * 64.0 * 1000.0 + students as f64 * small));
        assert_eq!(load(&format!("distill {taught}")), of(1));
        assert_eq!(load(&format!("distill {taught} --seeds 3")), of(3));
        let grid = "--grid temperature=1,2,4 --grid layers=64-32-10,64-16-10 --seeds 2";
        let beyond = |load: Option<Load>| load.expect("a load").beyond();
        let off = beyond(load(&format!("sweep {taught} {grid}"))) - beyond(of(6));
        assert!(off.abs() < 1.0, "{off}");
        assert_eq!(load(&format!("sweep {taught} --grid temperature=1,2,4 --seeds 2")), of(6));
        assert_eq!(load(&format!("sweep {taught} --grid temperature=1,2,4 --seeds 2 --at-once 3")), of(3));
    }

    #[test]
    fn only_large_steps_widen_the_vectors_of_lavapipe() {
        let settings = |line: &str| load(line).map_or(Vec::new(), |load| load.settings());
        let wide: &[_] = if environment::has_wide_vectors() { &[environment::WIDE] } else { &[] };
        assert_eq!(settings("train --data d --layers 784,800,800,10 --batch-size 128 --out o"), wide);
        assert_eq!(settings("bench step --shapes hinton"), wide);
        assert!(settings("train --data d --layers 784,100,10 --batch-size 128 --out o").is_empty());
        assert_eq!(settings("bench step --shapes small"), [environment::ALONE]);
        // Many side by side may be parted among devices, which are told that too.
        let many = "tune --layers 784,800,800,10 --batch-size 128 --replicas 64 --out o";
        assert_eq!(settings(many).contains(&environment::WIDE), environment::has_wide_vectors());
    }

    #[test]
    fn only_small_steps_keep_lavapipe_to_one_thread() {
        assert!(alone("train --data d --layers 64,32,10 --batch-size 64 --out o"));
        assert!(!alone("train --data d --layers 784,800,800,10 --out o"));
        assert!(alone("tune --teacher-layers 64,128,128,10 --layers 64,32,10 --batch-size 64 --out o"));
        assert!(!alone("tune --teacher-layers 784,1200,1200,10 --layers 784,800,800,10 --out o"));
        assert!(alone("bench step --shapes small,small-x16"));
        assert!(!alone("bench step --shapes hinton"));
        // Of both sizes, or not of steps alone: what is small gets a process of its own.
        for mixed in ["bench step", "bench step --shapes small,hinton", "bench all --shapes small"] {
            assert_eq!(load(mixed), None, "{mixed}");
        }
        // What makes no sense is refused later, not here.
        for odd in ["sweep --data d --out o", "train --data d --layers 64,32,10 --accumulate 0 --out o"] {
            load(odd);
        }
    }
}
