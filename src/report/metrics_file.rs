//! `metrics.jsonl`, one JSON object per line, and `metrics.csv`, one line per epoch; appended as the
//! run goes. Neither holds the time of day or a speed: the same run, the same bytes.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
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
    /// Mean of the losses on hidden layers, each times its weight.
    pub feature_loss: Option<f64>,
    /// Norm of the soft part of the logits' gradient over that of the hard part, both weighted.
    pub gradient_ratio: Option<f64>,
    /// Learning rate of the last step.
    pub lr: Option<f64>,
    /// T of the last step.
    pub temperature: Option<f64>,
    /// Steps whose gradient was not finite: they changed nothing and are left out of the means.
    pub skipped: Option<u64>,
}

/// A line of `metrics.csv`: an epoch's training rows, and the evaluation at its end where there is one.
#[derive(Serialize)]
struct Epoch {
    epoch: f64,
    step: u64,
    loss: Option<f64>,
    hard_loss: Option<f64>,
    soft_loss: Option<f64>,
    accuracy: Option<f64>,
    agreement: Option<f64>,
    lr: Option<f64>,
    validation_nll: Option<f64>,
    validation_accuracy: Option<f64>,
    validation_agreement: Option<f64>,
}

/// A file that only grows.
struct Growing {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Growing {
    /// Opens it, made if need be, and cuts it to its first `bytes`.
    fn open(path: PathBuf, bytes: u64) -> Result<Self> {
        let open = || {
            let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.set_len(bytes)?;
            file.seek(SeekFrom::Start(bytes))?;
            Ok(file)
        };
        let file = open().map_err(|e| Error::io("open", &path, e))?;
        Ok(Self { path, file, bytes })
    }

    /// Appends; a reader sees it when this returns.
    fn append(&mut self, text: &[u8]) -> Result<()> {
        self.file.write_all(text).map_err(|e| Error::io("write", &self.path, e))?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(|e| Error::io("write", &self.path, e))?;
        Ok(self.bytes)
    }
}

/// The open files.
pub struct MetricsFile {
    lines: Growing,
    epochs: Growing,
}

impl MetricsFile {
    /// The names of the files in a run's folder.
    pub const NAMES: [&'static str; 2] = ["metrics.jsonl", "metrics.csv"];

    /// Opens the files in `dir`, each cut to its first so many bytes; 0 begins anew.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be written.
    pub fn open(dir: &Path, bytes: [u64; 2]) -> Result<Self> {
        let [lines, epochs] = Self::NAMES.map(|name| dir.join(name));
        Ok(Self { lines: Growing::open(lines, bytes[0])?, epochs: Growing::open(epochs, bytes[1])? })
    }

    /// Appends a line to `metrics.jsonl`; a reader sees it when this returns.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk is full.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let mut text =
            serde_json::to_vec(line).map_err(|e| Error::io("write", &self.lines.path, e.into()))?;
        text.push(b'\n');
        self.lines.append(&text)
    }

    /// Appends a line to `metrics.csv`, before the first one the names of its columns.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk is full.
    pub fn write_epoch(&mut self, train: &Line, validation: Option<&Line>) -> Result<()> {
        let epoch = Epoch {
            epoch: train.epoch,
            step: train.step,
            loss: train.loss,
            hard_loss: train.hard_loss,
            soft_loss: train.soft_loss,
            accuracy: train.accuracy,
            agreement: train.agreement,
            lr: train.lr,
            validation_nll: validation.and_then(|v| v.hard_loss),
            validation_accuracy: validation.and_then(|v| v.accuracy),
            validation_agreement: validation.and_then(|v| v.agreement),
        };
        let failed = |e: std::io::Error| Error::io("write", &self.epochs.path, e);
        let mut out = csv::WriterBuilder::new().has_headers(self.epochs.bytes == 0).from_writer(Vec::new());
        out.serialize(epoch).map_err(|e| failed(e.into()))?;
        let text = out.into_inner().map_err(|e| failed(e.into_error()))?;
        self.epochs.append(&text)
    }

    /// Puts what was written on the disk and gives the lengths of the files.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk fails.
    pub fn sync(&mut self) -> Result<[u64; 2]> {
        Ok([self.lines.sync()?, self.epochs.sync()?])
    }
}
