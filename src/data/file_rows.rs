//! Rows that stay in their file: positioned reads, decoded on demand.
//!
//! Not a memory map: a file that shrinks under a map kills the process, and `unsafe` stays in `gpu/`.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::array::ElementType;
use super::read;
use crate::error::{Error, Result};

/// The most that one positioned read takes, in bytes, unless a single row is larger.
const CHUNK: usize = 1 << 20;

/// Row-major rows in an uncompressed file, all in one element type. Cheap to clone; safe to read from
/// several threads, as reads carry their own position.
#[derive(Clone, Debug)]
pub struct FileRows {
    file: Arc<File>,
    path: Arc<PathBuf>,
    offset: u64,
    kind: ElementType,
    big_endian: bool,
    features: usize,
    rows: usize,
    /// Row `i` of this set is row `pick[i]` of the file; `None`: all rows in order.
    pick: Option<Arc<Vec<u32>>>,
}

impl FileRows {
    pub(crate) fn new(
        file: Arc<File>,
        path: PathBuf,
        offset: u64,
        kind: ElementType,
        big_endian: bool,
        features: usize,
        rows: usize,
    ) -> Self {
        Self { file, path: Arc::new(path), offset, kind, big_endian, features, rows, pick: None }
    }

    /// The type as stored.
    pub fn element_type(&self) -> ElementType {
        self.kind
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.pick.as_ref().map_or(self.rows, |pick| pick.len())
    }

    /// The number of values in a row.
    pub fn features(&self) -> usize {
        self.features
    }

    /// A view of the rows of `index`, in its order; nothing is read.
    pub(crate) fn select(&self, index: &[u32]) -> Self {
        let pick = index.iter().map(|&row| self.file_row(row)).collect();
        Self { pick: Some(Arc::new(pick)), ..self.clone() }
    }

    /// The rows of `index` as f32, not scaled. A value that is not finite is an error: it was not seen at loading.
    pub fn read_rows(&self, index: &[u32], out: &mut [f32]) -> Result<()> {
        let mut scratch = Vec::new();
        self.runs(index, |first, rows, done| {
            scratch.resize(rows * self.features * self.kind.size(), 0);
            self.read_at(&mut scratch, first)?;
            let out = &mut out[done * self.features..][..rows * self.features];
            match self.kind.decode(self.big_endian, &scratch, out) {
                None => Ok(()),
                Some((i, value)) => Err(Error::data(
                    &*self.path,
                    format!("row {}, feature {}", first as usize + i / self.features, i % self.features),
                    "a finite f32",
                    value.to_string(),
                )),
            }
        })
    }

    /// The rows of `index` as bytes.
    ///
    /// # Panics
    /// If the elements are not u8.
    pub fn read_rows_u8(&self, index: &[u32], out: &mut [u8]) -> Result<()> {
        assert_eq!(self.kind, ElementType::U8, "rows of bytes");
        self.runs(index, |first, rows, done| {
            self.read_at(&mut out[done * self.features..][..rows * self.features], first)
        })
    }

    fn file_row(&self, row: u32) -> u32 {
        assert!((row as usize) < self.rows(), "row {row} of {}", self.rows());
        self.pick.as_ref().map_or(row, |pick| pick[row as usize])
    }

    /// Calls `read(first row in the file, rows, rows done before)` for each run of consecutive rows.
    fn runs(&self, index: &[u32], mut read: impl FnMut(u32, usize, usize) -> Result<()>) -> Result<()> {
        let most = (CHUNK / (self.features * self.kind.size())).max(1);
        let mut done = 0;
        while done < index.len() {
            let first = self.file_row(index[done]);
            let mut rows = 1;
            while rows < most
                && done + rows < index.len()
                && u64::from(self.file_row(index[done + rows])) == u64::from(first) + rows as u64
            {
                rows += 1;
            }
            read(first, rows, done)?;
            done += rows;
        }
        Ok(())
    }

    fn read_at(&self, out: &mut [u8], first: u32) -> Result<()> {
        let row_bytes = (self.features * self.kind.size()) as u64;
        let at = self.offset + u64::from(first) * row_bytes;
        read_exact_at(&self.file, out, at)
            .map_err(|e| read::broken(&self.path, &format!("row {first}, byte {at}"), e))
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut at: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                at += n as u64;
            }
        }
    }
    Ok(())
}
