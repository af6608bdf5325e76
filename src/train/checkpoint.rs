//! A run's state on disk: `checkpoints/step-N/`, written whole or not at all, verified when read.
//!
//! ```text
//! state.safetensors   weights, moments, sums under way, the best weights on validation
//! state.json          the step, the best score, evaluations since, lengths of the metrics files
//! manifest.json       bytes and sha256 of the two
//! ```
//! A checkpoint is written into a folder of another name, synced and renamed: one that has its name
//! is complete, whatever happened afterwards. A disk can still spoil it, so it is verified all the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::train::state::State;
use crate::train::stop::Score;

const SCHEMA: u32 = 1;
const STATE: &str = "state.safetensors";
const FACTS: &str = "state.json";
const MANIFEST: &str = "manifest.json";
const BEST: &str = "best";
const SKIPPED: &str = "skipped";

/// Everything that a run needs to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Weights, moments, step and sums.
    pub state: State,
    /// The best weights on validation so far.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub waited: u64,
    /// Bytes of the metrics files at this step.
    pub files: BTreeMap<String, u64>,
}

/// The best weights on validation so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// What they scored.
    pub score: Score,
    /// After so many steps.
    pub step: u64,
    /// The students' arena.
    pub students: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    schema_version: u32,
    step: u64,
    arenas: Vec<String>,
    best: Option<BestFacts>,
    waited: u64,
    files: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BestFacts {
    step: u64,
    errors: u64,
    nll: f64,
    /// The same, exactly.
    nll_bits: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    schema_version: u32,
    files: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Entry {
    bytes: u64,
    sha256: String,
}

impl Entry {
    fn of(bytes: &[u8]) -> Self {
        let sha256 = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        Self { bytes: bytes.len() as u64, sha256 }
    }
}

/// The folder of the checkpoint after `step` steps.
pub fn path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step}"))
}

/// Steps and folders of the checkpoints in `folder`, oldest first.
fn list(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<(u64, PathBuf)> = entries
        .filter_map(|e| Some((e.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?, e.path())))
        .collect();
    all.sort();
    all
}

/// Writes `checkpoint` into `folder` and removes all but the last `keep`.
///
/// # Errors
/// [`Error::Io`] where the disk is full or the folder cannot be written; the others stay as they are.
pub fn write(folder: &Path, checkpoint: &Checkpoint, keep: usize) -> Result<PathBuf> {
    let target = path(folder, checkpoint.state.step);
    let failed = |e| Error::io("write", &target, e).with_hint("the checkpoints before it are untouched");
    let best = checkpoint.best.as_ref();
    let stored = best.filter(|b| b.step != checkpoint.state.step).map(|b| (BEST, b.students.as_slice()));
    let facts = Facts {
        schema_version: SCHEMA,
        step: checkpoint.state.step,
        arenas: checkpoint.state.arenas.iter().map(|(n, _)| n.clone()).collect(),
        best: best.map(|b| BestFacts {
            step: b.step,
            errors: b.score.errors,
            nll: b.score.nll,
            nll_bits: b.score.nll.to_bits(),
        }),
        waited: checkpoint.waited,
        files: checkpoint.files.clone(),
    };
    let json = |e: serde_json::Error| failed(e.into());
    let parts = [
        (STATE, checkpoint.state.to_bytes(stored.as_slice())?),
        (FACTS, serde_json::to_vec_pretty(&facts).map_err(json)?),
    ];
    let files = parts.iter().map(|(name, bytes)| ((*name).to_owned(), Entry::of(bytes))).collect();
    let manifest = serde_json::to_vec_pretty(&Manifest { schema_version: SCHEMA, files }).map_err(json)?;

    let temporary = tempfile::Builder::new().prefix(".writing-").tempdir_in(folder).map_err(failed)?;
    for (name, bytes) in parts.iter().map(|(n, b)| (*n, b)).chain([(MANIFEST, &manifest)]) {
        let mut file = File::create(temporary.path().join(name)).map_err(failed)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    }
    sync_folder(temporary.path()).map_err(failed)?;
    if target.exists() {
        fs::remove_dir_all(&target).map_err(failed)?;
    }
    fs::rename(temporary.path(), &target).map_err(failed)?;
    sync_folder(folder).map_err(failed)?;
    let all = list(folder);
    for (_, old) in &all[..all.len().saturating_sub(keep.max(1))] {
        fs::remove_dir_all(old).map_err(|e| Error::io("remove", old, e))?;
    }
    Ok(target)
}

/// A name in a folder is on the disk when the folder is synced. Windows has no such call.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Reads a checkpoint. The text of an error says what is wrong with it.
///
/// # Errors
/// A file that is missing, cut, changed, or of another version.
pub fn read(path: &Path) -> std::result::Result<Checkpoint, String> {
    let file = |name: &str| fs::read(path.join(name)).map_err(|e| format!("{name}: {e}"));
    let json = |name: &str, e: serde_json::Error| format!("{name}: {e}");
    let manifest: Manifest = serde_json::from_slice(&file(MANIFEST)?).map_err(|e| json(MANIFEST, e))?;
    if manifest.schema_version != SCHEMA {
        return Err(format!("{MANIFEST}: version {}, this program reads {SCHEMA}", manifest.schema_version));
    }
    // Only these names are opened, whatever the manifest lists.
    let verified = |name: &str| {
        let bytes = file(name)?;
        let entry = manifest.files.get(name).ok_or_else(|| format!("{MANIFEST}: no `{name}`"))?;
        match (bytes.len() as u64 == entry.bytes, Entry::of(&bytes) == *entry) {
            (false, _) => Err(format!("{name}: {} bytes, {} were written", bytes.len(), entry.bytes)),
            (true, false) => Err(format!("{name}: its sha256 is not that of what was written")),
            (true, true) => Ok(bytes),
        }
    };
    let facts: Facts = serde_json::from_slice(&verified(FACTS)?).map_err(|e| json(FACTS, e))?;
    let (state, best) = State::from_bytes(&verified(STATE)?, facts.step, &facts.arenas, BEST)
        .map_err(|e| format!("{STATE}: {e}"))?;
    let best = facts.best.map(|b| Best {
        score: Score { errors: b.errors, nll: f64::from_bits(b.nll_bits) },
        step: b.step,
        students: best.unwrap_or_else(|| state.students().to_vec()),
    });
    Ok(Checkpoint { state, best, waited: facts.waited, files: facts.files })
}

/// What a search for a checkpoint found.
pub struct Found {
    /// The newest that verifies and is usable, and its folder.
    pub newest: Option<(PathBuf, Checkpoint)>,
    /// Newer ones that were passed over, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// The newest checkpoint in `folder` that verifies and that `usable` says nothing against. Those that
/// were passed over are renamed, so that they count no more.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be written.
pub fn newest(
    folder: &Path,
    usable: impl Fn(&Checkpoint) -> std::result::Result<(), String>,
) -> Result<Found> {
    let mut found = Found { newest: None, skipped: Vec::new() };
    for (_, path) in list(folder).into_iter().rev() {
        match read(&path).and_then(|c| usable(&c).map(|()| c)) {
            Ok(checkpoint) => {
                found.newest = Some((path, checkpoint));
                break;
            }
            Err(why) => {
                let aside = path.with_extension(SKIPPED);
                if aside.exists() {
                    fs::remove_dir_all(&aside).map_err(|e| Error::io("remove", &aside, e))?;
                }
                fs::rename(&path, &aside).map_err(|e| Error::io("rename", &path, e))?;
                found.skipped.push((path, why));
            }
        }
    }
    Ok(found)
}

/// Removes what a killed process left half-written, and with `all` every checkpoint.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be written.
pub fn clear(folder: &Path, all: bool) -> Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".writing-") || (all && name.starts_with("step-")) {
            fs::remove_dir_all(entry.path()).map_err(|e| Error::io("remove", entry.path(), e))?;
        }
    }
    Ok(())
}
