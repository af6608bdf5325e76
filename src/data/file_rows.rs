//! Rows that stay in their file, and rows behind them: positioned reads, decoded on demand.
//!
//! Not a memory map: a file that shrinks under a map kills the process, and `unsafe` stays in `gpu/`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::array::ElementType;
use super::{Elements, read};
use crate::error::{Error, Result};

/// The most that one positioned read takes, in bytes, unless a single row is larger.
const CHUNK: usize = 1 << 20;

/// Row-major rows that do not all lie in memory: those of an uncompressed file, alone or with the rows of
/// other sets behind them. Cheap to clone; safe to read from several threads, as reads carry their own
/// position.
#[derive(Clone, Debug)]
pub struct FileRows {
    parts: Arc<Vec<Part>>,
    features: usize,
    /// Row `i` of this set is row `pick[i]` of the parts together; `None`: all rows in order.
    pick: Option<Arc<Vec<u32>>>,
}

/// Rows that lie one behind the other.
#[derive(Clone, Debug)]
struct Part {
    rows: usize,
    store: Store,
}

#[derive(Clone, Debug)]
enum Store {
    File { file: Arc<File>, path: Arc<PathBuf>, offset: u64, kind: ElementType, big_endian: bool },
    U8(Arc<Vec<u8>>),
    F32(Arc<Vec<f32>>),
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
        let store = Store::File { file, path: Arc::new(path), offset, kind, big_endian };
        Self { parts: Arc::new(vec![Part { rows, store }]), features, pick: None }
    }

    /// The rows of `a` and behind them those of `b`, both of `features` values and both bytes or both not.
    pub(super) fn joined(a: Elements, b: Elements, features: usize) -> Self {
        let apart = |elements| match elements {
            Elements::U8(v) => Self::of(v.len() / features, Store::U8(Arc::new(v)), features),
            Elements::F32(v) => Self::of(v.len() / features, Store::F32(Arc::new(v)), features),
            Elements::File(rows) => rows,
        };
        let (a, b) = (apart(a), apart(b));
        let total = |rows: &Self| rows.parts.iter().map(|part| part.rows).sum::<usize>() as u32;
        let (before, all) = (total(&a), total(&a) + total(&b));
        let pick = (a.pick.is_some() || b.pick.is_some()).then(|| {
            let rows =
                |set: &Self, end: u32| set.pick.as_ref().map_or_else(|| (0..end).collect(), |p| p.to_vec());
            let behind = rows(&b, all - before).into_iter().map(|row| before + row);
            Arc::new(rows(&a, before).into_iter().chain(behind).collect())
        });
        Self { parts: Arc::new(a.parts.iter().chain(b.parts.iter()).cloned().collect()), features, pick }
    }

    fn of(rows: usize, store: Store, features: usize) -> Self {
        Self { parts: Arc::new(vec![Part { rows, store }]), features, pick: None }
    }

    /// True where the values are bytes, false where they become f32.
    pub fn is_u8(&self) -> bool {
        match &self.parts[0].store {
            Store::File { kind, .. } => *kind == ElementType::U8,
            Store::U8(_) => true,
            Store::F32(_) => false,
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.pick.as_ref().map_or_else(|| self.parts.iter().map(|part| part.rows).sum(), |pick| pick.len())
    }

    /// The number of values in a row.
    pub fn features(&self) -> usize {
        self.features
    }

    /// A view of the rows of `index`, in its order; nothing is read.
    pub(crate) fn select(&self, index: &[u32]) -> Self {
        let pick = index.iter().map(|&row| self.own_row(row)).collect();
        Self { pick: Some(Arc::new(pick)), ..self.clone() }
    }

    /// The rows of `index` as f32, not scaled. A value that is not finite is an error: it was not seen at loading.
    pub fn read_rows(&self, index: &[u32], out: &mut [f32]) -> Result<()> {
        let mut scratch = Vec::new();
        self.runs(index, |store, first, values| {
            let out = &mut out[values];
            match store {
                Store::F32(v) => out.copy_from_slice(&v[first * self.features..][..out.len()]),
                Store::U8(v) => {
                    let from = &v[first * self.features..][..out.len()];
                    out.iter_mut().zip(from).for_each(|(to, from)| *to = f32::from(*from));
                }
                Store::File { path, kind, big_endian, .. } => {
                    scratch.resize(out.len() * kind.size(), 0);
                    self.read_at(store, &mut scratch, first)?;
                    if let Some((i, value)) = kind.decode(*big_endian, &scratch, out) {
                        return Err(Error::data(
                            &**path,
                            format!("row {}, feature {}", first + i / self.features, i % self.features),
                            "a finite f32",
                            value.to_string(),
                        ));
                    }
                }
            }
            Ok(())
        })
    }

    /// The rows of `index` as bytes.
    ///
    /// # Panics
    /// If the elements are not u8.
    pub fn read_rows_u8(&self, index: &[u32], out: &mut [u8]) -> Result<()> {
        assert!(self.is_u8(), "rows of bytes");
        self.runs(index, |store, first, values| {
            let out = &mut out[values];
            match store {
                Store::U8(v) => out.copy_from_slice(&v[first * self.features..][..out.len()]),
                _ => self.read_at(store, out, first)?,
            }
            Ok(())
        })
    }

    /// The row's number in the parts together.
    fn own_row(&self, row: u32) -> u32 {
        assert!((row as usize) < self.rows(), "row {row} of {}", self.rows());
        self.pick.as_ref().map_or(row, |pick| pick[row as usize])
    }

    /// Calls `read(store, first row in it, where in the output)` for each run of consecutive rows.
    fn runs(
        &self,
        index: &[u32],
        mut read: impl FnMut(&Store, usize, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        // As f64, the widest there is.
        let most = (CHUNK / (self.features * 8)).max(1);
        let mut done = 0;
        while done < index.len() {
            let start = self.own_row(index[done]);
            let (mut first, mut part) = (start as usize, 0);
            while first >= self.parts[part].rows {
                first -= self.parts[part].rows;
                part += 1;
            }
            let Part { rows: behind, store } = &self.parts[part];
            let most = most.min(behind - first).min(index.len() - done);
            let follows =
                |n: &usize| u64::from(self.own_row(index[done + n])) == u64::from(start) + *n as u64;
            let rows = 1 + (1..most).take_while(follows).count();
            read(store, first, done * self.features..(done + rows) * self.features)?;
            done += rows;
        }
        Ok(())
    }

    fn read_at(&self, store: &Store, out: &mut [u8], first: usize) -> Result<()> {
        let Store::File { file, path, offset, kind, .. } = store else { return Ok(()) };
        let at = offset + first as u64 * (self.features * kind.size()) as u64;
        read_exact_at(file, out, at).map_err(|e| read::broken(path, &format!("row {first}, byte {at}"), e))
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
