//! One error for the whole crate: what was done, what was expected, what was found, and what to do about it.

use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong for a user, a file or a device.
///
/// Each variant maps to one exit code of the binary ([`Error::exit_code`]) and may carry a
/// hint that says what to do ([`Error::hint`]).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option, a configuration or a combination of them that makes no sense.
    #[error("{what}: expected {expected}, found {found}")]
    Usage {
        /// The option or setting.
        what: String,
        /// What it should have been.
        expected: String,
        /// What it was.
        found: String,
        /// What to do.
        hint: Option<String>,
    },
    /// No adapter can run limbeck, or none matches what was asked for.
    #[error("no usable adapter: {what}")]
    NoAdapter {
        /// What was looked for and what was found instead.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A data or model file is not what it should be.
    #[error("{}: {at}: expected {expected}, found {found}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// The place in it: an offset, a row, a tensor.
        at: String,
        /// What should have stood there.
        expected: String,
        /// What stood there.
        found: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The operating system refused to read or write a file.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// The verb: read, write, create.
        op: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
        /// What to do.
        hint: Option<String>,
    },
    /// The device was lost, ran out of memory or refused an operation.
    #[error("{op}: {what}")]
    Device {
        /// The operation, such as a dispatch's label.
        op: String,
        /// The device's answer, with the limit where one was passed.
        what: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The run itself failed: a loss or a weight is no longer a finite number, a target was missed.
    #[error("{0}")]
    Run(String),
    /// The user stopped the run, which left a checkpoint.
    #[error("interrupted after step {step}; checkpoint saved in {}", checkpoint.display())]
    Interrupted {
        /// Steps done.
        step: u64,
        /// The folder to go on from.
        checkpoint: PathBuf,
    },
}

impl Error {
    /// A [`Error::Usage`] without a hint.
    pub fn usage(what: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), expected: expected.into(), found: found.into(), hint: None }
    }

    /// A [`Error::Data`] without a hint.
    pub fn data(
        path: impl AsRef<Path>,
        at: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Data {
            path: path.as_ref().to_owned(),
            at: at.into(),
            expected: expected.into(),
            found: found.into(),
            hint: None,
        }
    }

    /// A [`Error::Io`] without a hint; `op` is the verb ("read", "write", "create").
    pub fn io(op: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { op, path: path.as_ref().to_owned(), source, hint: None }
    }

    /// A [`Error::Device`] without a hint.
    pub fn device(op: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Device { op: op.into(), what: what.into(), hint: None }
    }

    /// The same error with `text` as its hint ([`Error::Run`] takes none).
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::Usage { hint, .. }
            | Self::Data { hint, .. }
            | Self::Io { hint, .. }
            | Self::Device { hint, .. } => *hint = Some(text.into()),
            Self::NoAdapter { hint, .. } => *hint = text.into(),
            Self::Run(_) | Self::Interrupted { .. } => {}
        }
        self
    }

    /// What the user can do about it, where something can be done.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Usage { hint, .. }
            | Self::Data { hint, .. }
            | Self::Io { hint, .. }
            | Self::Device { hint, .. } => hint.as_deref(),
            Self::NoAdapter { hint, .. } => Some(hint),
            Self::Run(_) => None,
            Self::Interrupted { .. } => Some("go on with --resume"),
        }
    }

    /// The binary's exit code: 1 the run failed, 2 usage, 3 no adapter, 4 data or model file, 5 device,
    /// 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Run(_) => 1,
            Self::Usage { .. } => 2,
            Self::NoAdapter { .. } => 3,
            Self::Data { .. } | Self::Io { .. } => 4,
            Self::Device { .. } => 5,
            Self::Interrupted { .. } => 130,
        }
    }
}
