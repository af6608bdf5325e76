//! NumPy's .npz: a zip archive of .npy files, stored or deflated, as `np.savez` and Keras' data sets write it.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive, result::ZipError};

use super::Split;
use super::array::Array;
use super::load::LoadOptions;
use super::named::{Store, assemble};
use super::npy;
use super::read::{self, MAX_DEFLATE_RATIO, SourceFile};
use crate::error::{Error, Result};

struct Archive<'a> {
    path: &'a Path,
    len: u64,
    source: SourceFile,
    zip: ZipArchive<BufReader<File>>,
}

/// Loads the arrays of an archive; it becomes resident whatever its size.
pub(crate) fn load(path: &Path, options: &LoadOptions) -> Result<Split> {
    let source = read::hash(path)?;
    let (file, len) = read::open(path)?;
    let zip = ZipArchive::new(BufReader::new(file)).map_err(|e| broken(path, "archive", e))?;
    assemble(path, &mut Archive { path, len, source, zip }, options)
}

impl Store for Archive<'_> {
    fn names(&self) -> Vec<String> {
        let names = self.zip.file_names();
        names.filter_map(|name| Some(name.ok()?.strip_suffix(".npy")?.to_owned())).collect()
    }

    fn open(&mut self, name: &str, _resident_limit: u64) -> Result<(Array, SourceFile)> {
        let member = format!("{name}.npy");
        let at = format!("{member}: ");
        let mut entry = self.zip.by_name(&member).map_err(|e| broken(self.path, &at, e))?;
        // The sizes in the archive's directory are claims like any other.
        let stored = entry.compressed_size().min(self.len);
        let most = match entry.compression() {
            CompressionMethod::Stored => stored,
            _ => stored.saturating_mul(MAX_DEFLATE_RATIO),
        };
        let array = Array::parse(&mut entry, most, self.path, &at, npy::read_header)?;
        Ok((array, self.source.clone()))
    }
}

fn broken(path: &Path, at: &str, e: ZipError) -> Error {
    match e {
        ZipError::Io(e) => read::broken(path, at, e),
        e => {
            Error::data(path, at, "a zip archive as np.savez and np.savez_compressed write it", e.to_string())
        }
    }
}
