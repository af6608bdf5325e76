//! The folder of a run: configuration, record, metrics, checkpoints, model, summary.
//!
//! ```text
//! config.toml     every option, resolved
//! run.json        what the run depended on (Record), and how it ended
//! metrics.jsonl   a line per interval and evaluation; only grows
//! metrics.csv     a line per epoch
//! checkpoints/    step-N/, see [`checkpoint`](super::checkpoint)
//! summary.json    the result, and the model beside it
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::mlp::weights::write_atomically;
use crate::report::metrics_file::MetricsFile;
use crate::train::checkpoint::{self, Checkpoint};

const SCHEMA: u32 = 1;
/// The run's options.
pub const CONFIG: &str = "config.toml";
/// The run's record.
pub const RECORD: &str = "run.json";
/// The run's result.
pub const SUMMARY: &str = "summary.json";
const CHECKPOINTS: &str = "checkpoints";

/// What to do with a folder that holds a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Refuse it.
    New,
    /// Overwrite the run.
    Force,
    /// Go on with it; a folder without a run begins one.
    Resume,
}

/// What a run's bits depend on, as far as the program can see, and how it ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    schema_version: u32,
    /// This program's version.
    pub limbeck: String,
    /// `train` or `distill`.
    pub command: String,
    /// The process's arguments.
    pub arguments: Vec<String>,
    /// The device.
    pub device: Device,
    /// Of weights, orders and splits.
    pub seed: u64,
    /// Of the rows of each part as they were trained on: [`crate::data::Dataset::fingerprint`].
    pub data: BTreeMap<String, String>,
    /// sha256 of each teacher's weights or logits.
    pub teacher: Vec<String>,
    /// Steps from which the run was resumed.
    pub resumed: Vec<u64>,
    /// `running`, `complete`, `interrupted` or `failed`.
    pub status: String,
    /// The process's exit code, when it has ended.
    pub exit_code: Option<u8>,
    /// The error that ended it.
    pub error: Option<String>,
}

/// Device, driver, and which kernels were chosen on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub adapter: String,
    /// Its kind, such as `discrete`.
    pub kind: String,
    /// The graphics API.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// Smallest and largest subgroup.
    pub subgroup: [u32; 2],
    /// sha256 of the tuning profile; none: the built-in choices.
    pub profile_sha256: Option<String>,
    /// Kernels that were found to be wrong on it and not used.
    pub avoided: Vec<String>,
}

impl Device {
    /// Of an open device.
    pub fn of(gpu: &Gpu) -> Self {
        let r = &gpu.report;
        let profile = Some(&gpu.profile).filter(|p| !p.answers.is_empty());
        Self {
            adapter: r.name.clone(),
            kind: r.kind.to_string(),
            backend: r.backend.clone(),
            driver: r.driver.clone(),
            subgroup: r.subgroup,
            profile_sha256: profile
                .map(|p| Sha256::digest(p.to_json()).iter().map(|b| format!("{b:02x}")).collect()),
            avoided: gpu.avoided(),
        }
    }
}

impl Record {
    /// Of a run that begins.
    pub fn new(
        command: &str,
        gpu: &Gpu,
        seed: u64,
        data: BTreeMap<String, String>,
        teacher: Vec<String>,
    ) -> Self {
        Self {
            schema_version: SCHEMA,
            limbeck: env!("CARGO_PKG_VERSION").to_owned(),
            command: command.to_owned(),
            arguments: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
            device: Device::of(gpu),
            seed,
            data,
            teacher,
            resumed: Vec::new(),
            status: "running".to_owned(),
            exit_code: None,
            error: None,
        }
    }

    /// Reads the record of the run in `root`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] where there is none that can be read.
    pub fn load(root: &Path) -> Result<Self> {
        let path = root.join(RECORD);
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let record: Self = serde_json::from_slice(&bytes)
            .map_err(|e| Error::data(&path, format!("line {}", e.line()), "a run's record", e.to_string()))?;
        if record.schema_version != SCHEMA {
            let found = record.schema_version.to_string();
            return Err(Error::data(&path, "schema_version", SCHEMA.to_string(), found));
        }
        Ok(record)
    }

    /// Whether `now` is of the same command, seed, data and teacher; `verb` is what is refused if not.
    ///
    /// # Errors
    /// [`Error::Usage`] naming both.
    pub fn check_same(&self, now: &Self, verb: &str) -> Result<()> {
        let text = |r: &Self| {
            let data: Vec<_> = r.data.iter().map(|(part, sha)| format!("{part} {}", short(sha))).collect();
            let teacher: Vec<_> = r.teacher.iter().map(|sha| short(sha)).collect();
            format!(
                "{} with seed {}, data {}, teacher {}",
                r.command,
                r.seed,
                data.join(" "),
                if teacher.is_empty() { "none".to_owned() } else { teacher.join(" ") }
            )
        };
        let key = |r: &Self| (r.command.clone(), r.seed, r.data.clone(), r.teacher.clone());
        if key(self) == key(now) {
            return Ok(());
        }
        Err(Error::usage(format!("{verb} the run"), text(self), text(now))
            .with_hint("it needs what the run began with; begin another run in a folder of its own"))
    }
}

/// An open run.
pub struct RunDir {
    /// The folder.
    pub root: PathBuf,
    /// Its metrics.
    pub metrics: MetricsFile,
    record: Record,
    /// Held as long as the run is open.
    _lock: File,
}

/// Makes sure that nothing would be overwritten that should not be; makes nothing yet.
///
/// # Errors
/// [`Error::Usage`] naming what is there.
pub fn check(root: &Path, model: &str, begin: Begin) -> Result<()> {
    let names = [model, SUMMARY, RECORD, CONFIG].into_iter().chain(MetricsFile::NAMES);
    let taken = names.map(|name| root.join(name)).find(|path| path.exists());
    let found = taken.map(|path| format!("{} exists", path.display()));
    match (begin, found) {
        (Begin::New, Some(found)) => Err(Error::usage("--out", "a folder without results", found)
            .with_hint("choose another folder, go on with --resume, or overwrite with --force")),
        (Begin::Resume, Some(found)) if !root.join(RECORD).exists() => {
            Err(Error::usage("--resume", "a folder with a run", format!("no {RECORD}, though {found}")))
        }
        _ => Ok(()),
    }
}

impl RunDir {
    /// Opens the folder for the run that `record` and `config` describe. When resuming, gives the newest
    /// usable checkpoint, with the metrics cut back to it, and says on `say` what was found.
    ///
    /// # Errors
    /// As [`check`]; [`Error::Usage`] where another process has the run open, or where the run was of
    /// other data, another teacher or seed; [`Error::Io`] where the folder cannot be written.
    pub fn open(
        root: &Path,
        model: &str,
        begin: Begin,
        config: &str,
        record: Record,
        say: &mut dyn FnMut(&str),
    ) -> Result<(Self, Option<Checkpoint>)> {
        check(root, model, begin)?;
        let checkpoints = root.join(CHECKPOINTS);
        fs::create_dir_all(&checkpoints).map_err(|e| Error::io("create", &checkpoints, e))?;
        let lock = lock(root)?;
        let resume = begin == Begin::Resume && root.join(RECORD).exists();
        checkpoint::clear(&checkpoints, !resume)?;
        let mut record = record;
        let mut from = None;
        if resume {
            let before = Record::load(root)?;
            before.check_same(&record, "resume")?;
            record.resumed = before.resumed;
            from = newest(root, &checkpoints, say)?;
            record.resumed.push(from.as_ref().map_or(0, |c| c.state.step));
        } else if begin == Begin::Resume {
            say(&format!("nothing to resume in {}: beginning", root.display()));
        }
        // First of all: a folder with the record is a run that can be resumed, whatever else it lacks.
        write_json(root, RECORD, &record)?;
        // What an earlier, longer run left would contradict this one.
        for name in [model, SUMMARY] {
            let path = root.join(name);
            if path.exists() {
                fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        let bytes = MetricsFile::NAMES
            .map(|name| from.as_ref().and_then(|c| c.files.get(name)).copied().unwrap_or(0));
        let metrics = MetricsFile::open(root, bytes)?;
        write_atomically(&root.join(CONFIG), config.as_bytes())?;
        Ok((Self { root: root.to_owned(), metrics, record, _lock: lock }, from))
    }

    /// Writes a checkpoint, with the metrics on the disk before it, and removes all but the last `keep`.
    ///
    /// # Errors
    /// [`Error::Io`]; what was there stays.
    pub fn save(&mut self, mut checkpoint: Checkpoint, keep: usize) -> Result<PathBuf> {
        let bytes = self.metrics.sync()?;
        checkpoint.files = MetricsFile::NAMES.map(str::to_owned).into_iter().zip(bytes).collect();
        checkpoint::write(&self.root.join(CHECKPOINTS), &checkpoint, keep)
    }

    /// The folder of the checkpoint after `step` steps.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        checkpoint::path(&self.root.join(CHECKPOINTS), step)
    }

    /// Writes the result.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_summary(&self, summary: &impl Serialize) -> Result<()> {
        write_json(&self.root, SUMMARY, summary)
    }

    /// Records how the run ended.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn close(mut self, error: Option<&Error>) -> Result<()> {
        let status = match error {
            None => "complete",
            Some(Error::Interrupted { .. }) => "interrupted",
            Some(_) => "failed",
        };
        self.record.status = status.to_owned();
        self.record.exit_code = Some(error.map_or(0, Error::exit_code));
        self.record.error = error.map(ToString::to_string);
        write_json(&self.root, RECORD, &self.record)
    }
}

fn write_json(root: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let path = root.join(name);
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::io("write", &path, e.into()))?;
    text.push(b'\n');
    write_atomically(&path, &text)
}

/// Two processes that append to one run would spoil it. The lock goes with the process, however it ends.
fn lock(root: &Path) -> Result<File> {
    let path = root.join(CHECKPOINTS).join(".lock");
    let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::usage("--out", "a run that no other process has open", root.display().to_string()))
        }
        // Some network file systems know no locks; the run is as safe as the user makes it.
        Err(fs::TryLockError::Error(_)) => Ok(file),
    }
}

fn short(sha: &str) -> String {
    sha.rsplit(':').next().unwrap_or_default().chars().take(12).collect()
}

/// The newest usable checkpoint. One whose metrics are no longer there would leave a gap in them.
fn newest(root: &Path, folder: &Path, say: &mut dyn FnMut(&str)) -> Result<Option<Checkpoint>> {
    let found = checkpoint::newest(folder, |c| {
        MetricsFile::NAMES.iter().try_for_each(|name| {
            let has = fs::metadata(root.join(name)).map_or(0, |m| m.len());
            let wanted = c.files.get(*name).copied().unwrap_or(0);
            if has < wanted {
                Err(format!("{name} has {has} bytes, {wanted} at the checkpoint"))
            } else {
                Ok(())
            }
        })
    })?;
    for (path, why) in &found.skipped {
        say(&format!("skipping {}: {why}", path.display()));
    }
    match &found.newest {
        Some((path, c)) => say(&format!("resuming after step {} from {}", c.state.step, path.display())),
        None => say("no usable checkpoint: beginning again"),
    }
    Ok(found.newest.map(|(_, c)| c))
}
