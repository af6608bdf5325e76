//! The binary on the embedded digits, in folders of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder for runs of one small network.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A call that trains into the folder `out`, with `more` options; not begun.
    pub(crate) fn train(&self, out: &str, more: &[&str]) -> Command {
        let mut command = limbeck();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/optdigits");
        command.arg("train").arg("--data").arg(data).arg("--out").arg(self.path(out));
        if !more.contains(&"--layers") {
            command.args(["--layers", "64,16,10"]);
        }
        command.args(["--batch-size", "64", "--validation", "0.2"]).args(more);
        command
    }

    /// sha256 of the trained weights, as the run's summary says.
    pub(crate) fn hash(&self, out: &str) -> String {
        self.json(&format!("{out}/summary.json"))["weights_sha256"].as_str().expect("a hash").to_owned()
    }

    pub(crate) fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_str(&self.text(name)).expect("JSON")
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Steps of the checkpoints in a run's folder, oldest first.
    pub(crate) fn checkpoints(&self, out: &str) -> Vec<u64> {
        let entries = fs::read_dir(self.path(out).join("checkpoints")).expect("checkpoints");
        let mut steps: Vec<u64> = entries
            .filter_map(|e| e.expect("an entry").file_name().to_str()?.strip_prefix("step-")?.parse().ok())
            .collect();
        steps.sort_unstable();
        steps
    }

    /// What must not depend on how often a run was cut: weights and metrics.
    pub(crate) fn same(&self, a: &str, b: &str) {
        assert_eq!(self.hash(a), self.hash(b), "weights of {a} and {b}");
        for name in ["metrics.jsonl", "metrics.csv"] {
            assert_eq!(self.text(&format!("{a}/{name}")), self.text(&format!("{b}/{name}")), "{name}");
        }
    }
}

pub(crate) fn limbeck() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("limbeck"))
}

/// Runs to a good end and gives what was said on stderr.
pub(crate) fn succeeds(command: &mut Command) -> String {
    let out = command.output().expect("it runs");
    let stderr = said(&out);
    assert!(out.status.success(), "{command:?}: {stderr}");
    stderr
}

/// Runs to an error with this exit code and gives what was said on stderr.
pub(crate) fn fails(command: &mut Command, code: i32) -> String {
    let out = command.output().expect("it runs");
    let stderr = said(&out);
    assert_eq!(out.status.code(), Some(code), "{command:?}: {stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    stderr
}

fn said(out: &Output) -> String {
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}
