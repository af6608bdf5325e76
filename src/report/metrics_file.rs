//! `metrics.jsonl`: one JSON object per line, appended as the run goes.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};

/// One line: every `log_every` steps of training (the mean over those steps), and one per
/// evaluation. What does not apply is null.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Line {
    /// `train`, `validation` or `test`.
    pub split: &'static str,
    /// Steps done.
    pub step: u64,
    /// Passes over the training rows.
    pub epoch: f64,
    /// hard_weight * hard_loss + soft_weight * soft_loss.
    pub loss: Option<f64>,
    /// Mean cross-entropy with the labels.
    pub hard_loss: Option<f64>,
    /// Mean soft loss.
    pub soft_loss: Option<f64>,
    /// Share of labelled rows that are right.
    pub accuracy: Option<f64>,
    /// Share of rows on which student and teacher agree.
    pub agreement: Option<f64>,
    /// Norm of the soft part of the logits' gradient over that of the hard part, both weighted.
    pub gradient_ratio: Option<f64>,
    /// Learning rate of the last step.
    pub lr: Option<f64>,
    /// T of the last step.
    pub temperature: Option<f64>,
    /// Training rows per second.
    pub samples_per_second: Option<f64>,
}

/// The open file.
pub struct MetricsFile {
    path: PathBuf,
    out: BufWriter<File>,
}

impl MetricsFile {
    /// Creates `metrics.jsonl` in `dir`.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        let path = dir.join("metrics.jsonl");
        let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        Ok(Self { path, out: BufWriter::new(file) })
    }

    /// Appends a line; it is on its way to the disk when this returns.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk is full.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let failed = |e| Error::io("write", &self.path, e);
        serde_json::to_writer(&mut self.out, line).map_err(|e| failed(e.into()))?;
        self.out.write_all(b"\n").and_then(|()| self.out.flush()).map_err(failed)
    }
}
