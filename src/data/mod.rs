//! Data sets: what is read, how it is split, in which order it is visited.
//!
//! ```text
//! load(path, options)                 idx, npy, npz, csv, safetensors -> Split { train, validation, test }
//!   -> split::{validation, labels_per_class, label_fraction, drop_classes}    index lists, pure functions of (seed, labels)
//!   -> Dataset::{select, keep_labels}                                         the rows of such a list
//!   -> Normalisation::{scaled, standardised}                                  statistics of the training rows only
//! ```
//!
//! Every reader bounds what it allocates by what the file holds, never by what its header promises, and
//! every error names the file, the place in it, what should stand there and what does.

mod array;
mod content;
mod csv_file;
mod file_rows;
mod idx;
mod load;
mod named;
mod normalise;
pub mod npy;
mod npz;
mod optdigits;
mod read;
mod safetensors_rows;
pub mod split;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};

pub use array::ElementType;
pub use csv_file::LabelColumn;
pub use file_rows::FileRows;
pub use load::{LoadOptions, load, read_matrix};
pub use named::Keys;
pub use normalise::Normalisation;
pub use optdigits::{OPTDIGITS_ATTRIBUTION, optdigits};
pub use read::SourceFile;
pub use split::Split;

/// The label of a row that has none: only soft targets can teach from it.
pub const UNLABELLED: u32 = u32::MAX;

/// Labels must lie below this unless the number of classes is given: one forged label must not size a network.
pub const MAX_CLASSES: usize = 1 << 16;

/// The features of all rows, row-major, as they were stored: not scaled, not normalised.
#[derive(Clone, Debug)]
pub enum Elements {
    /// Bytes, usually grey values; they stay bytes on the device.
    U8(Vec<u8>),
    /// Everything else, converted to f32; all values are finite.
    F32(Vec<f32>),
    /// Rows that stay in their file and are read when asked for.
    File(FileRows),
}

impl Elements {
    /// True where rows are bytes ([`Dataset::read_rows_u8`] gives them), false where they are f32.
    pub fn is_u8(&self) -> bool {
        match self {
            Self::U8(_) => true,
            Self::F32(_) => false,
            Self::File(file) => file.is_u8(),
        }
    }
}

/// Rows of features with or without labels.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The features, `[rows, shape…]` row-major.
    pub x: Elements,
    /// The shape of one row: `[28, 28]` for MNIST, `[4]` for a table with four columns.
    pub shape: Vec<usize>,
    /// One label per row, below `classes` or [`UNLABELLED`].
    pub labels: Option<Vec<u32>>,
    /// The number of classes: one more than the largest training label unless told; 0 without labels.
    pub classes: usize,
    /// The classes' names, in label order, where the source had names.
    pub class_names: Option<Vec<String>>,
    /// From stored values to a network's inputs: 1/255 times bytes unless told, else as they are.
    pub normalisation: Normalisation,
    /// The files this was read from; empty for rows made in memory.
    pub source: Vec<SourceFile>,
    rows: usize,
    /// The number that each row had in the set as loaded; `None`: its own.
    origin: Option<Arc<Vec<u32>>>,
}

impl Dataset {
    /// Joins `x` with `labels` and checks everything the rest of the crate relies on.
    ///
    /// `path` stands in errors only. `classes` bounds the labels; `None` counts them: largest + 1.
    /// Fails on no rows, no features, a length that is no multiple of the features, a label count other
    /// than the rows, and a label outside the classes.
    pub fn new(
        path: impl AsRef<Path>,
        x: Elements,
        shape: Vec<usize>,
        labels: Option<Vec<u32>>,
        classes: Option<usize>,
    ) -> Result<Self> {
        let path = path.as_ref();
        let features = shape
            .iter()
            .try_fold(1_usize, |n, &d| n.checked_mul(d))
            .filter(|&n| n > 0)
            .ok_or_else(|| Error::data(path, "shape", "at least one feature", format!("{shape:?}")))?;
        let (elements, default_scale) = match &x {
            Elements::U8(v) => (v.len(), 1.0 / 255.0),
            Elements::F32(v) => (v.len(), 1.0),
            Elements::File(f) => (f.rows() * f.features(), if x.is_u8() { 1.0 / 255.0 } else { 1.0 }),
        };
        let rows = elements / features;
        if rows == 0 || elements % features != 0 {
            return Err(Error::data(
                path,
                "values",
                format!("at least one row, whole rows of {features} values"),
                format!("{elements} values"),
            ));
        }
        if u32::try_from(rows).is_err() {
            return Err(Error::data(path, "rows", "fewer than 2^32", rows.to_string()));
        }
        let classes = match &labels {
            Some(labels) => check_labels(path, labels, rows, classes)?,
            None => classes.unwrap_or(0),
        };
        Ok(Self {
            x,
            shape,
            labels,
            classes,
            class_names: None,
            normalisation: Normalisation::scaled(default_scale),
            source: Vec::new(),
            rows,
            origin: None,
        })
    }

    /// The number of rows, at least 1 unless rows were deselected.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of values in a row: the product of `shape`.
    pub fn features(&self) -> usize {
        self.shape.iter().product()
    }

    /// What all rows take resident on a device, in bytes, without padding.
    pub fn bytes(&self) -> u64 {
        let element = if self.x.is_u8() { 1 } else { 4 };
        self.rows as u64 * self.features() as u64 * element
    }

    /// The rows of `index` in its order, repeats allowed; rows in a file stay there.
    ///
    /// # Panics
    /// If an index is not below [`Dataset::rows`].
    pub fn select(&self, index: &[u32]) -> Self {
        let x = match &self.x {
            Elements::U8(v) => Elements::U8(gather(v, index, self.features())),
            Elements::F32(v) => Elements::F32(gather(v, index, self.features())),
            Elements::File(f) => Elements::File(f.select(index)),
        };
        Self {
            x,
            shape: self.shape.clone(),
            labels: self.labels.as_ref().map(|labels| gather(labels, index, 1)),
            classes: self.classes,
            class_names: self.class_names.clone(),
            normalisation: self.normalisation.clone(),
            source: self.source.clone(),
            rows: index.len(),
            origin: Some(Arc::new(index.iter().map(|&row| self.origin(row)).collect())),
        }
    }

    /// The number that row `row` had in the set as loaded, before any selection: what is stored by row
    /// number, such as a teacher's logits, is found by it.
    pub fn origin(&self, row: u32) -> u32 {
        self.origin.as_ref().map_or(row, |origin| origin[row as usize])
    }

    /// The same rows, of which only those in `index` keep their label; the others become [`UNLABELLED`].
    pub fn keep_labels(mut self, index: &[u32]) -> Self {
        if let Some(labels) = &mut self.labels {
            let mut kept = vec![UNLABELLED; labels.len()];
            for &row in index {
                kept[row as usize] = labels[row as usize];
            }
            *labels = kept;
        }
        self
    }

    /// Row `row`, normalised, into `out` of [`Dataset::features`] values.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) -> Result<()> {
        self.read_rows(&[row as u32], out)?;
        self.normalisation.apply(out);
        Ok(())
    }

    /// The rows of `index` as stored, not scaled, into `out` of `index.len() * features()` values.
    ///
    /// Only rows in a file can fail; consecutive indices are read at once.
    pub fn read_rows(&self, index: &[u32], out: &mut [f32]) -> Result<()> {
        let n = self.features();
        assert_eq!(out.len(), index.len() * n, "out holds index.len() rows");
        match &self.x {
            Elements::U8(v) => {
                for (&row, out) in index.iter().zip(out.chunks_exact_mut(n)) {
                    for (to, &from) in out.iter_mut().zip(&v[row as usize * n..][..n]) {
                        *to = f32::from(from);
                    }
                }
            }
            Elements::F32(v) => {
                for (&row, out) in index.iter().zip(out.chunks_exact_mut(n)) {
                    out.copy_from_slice(&v[row as usize * n..][..n]);
                }
            }
            Elements::File(f) => f.read_rows(index, out)?,
        }
        Ok(())
    }

    /// The rows of `index` as bytes; for sets whose elements are u8 ([`Elements::is_u8`]).
    ///
    /// # Panics
    /// If the elements are not u8.
    pub fn read_rows_u8(&self, index: &[u32], out: &mut [u8]) -> Result<()> {
        let n = self.features();
        assert_eq!(out.len(), index.len() * n, "out holds index.len() rows");
        match &self.x {
            Elements::U8(v) => {
                for (&row, out) in index.iter().zip(out.chunks_exact_mut(n)) {
                    out.copy_from_slice(&v[row as usize * n..][..n]);
                }
                Ok(())
            }
            Elements::File(f) if self.x.is_u8() => f.read_rows_u8(index, out),
            _ => panic!("read_rows_u8 on rows of f32"),
        }
    }

    /// The number of classes that another part's labels must keep to. Fails on a single class: a network
    /// learns nothing from it, and the wrong array or column looks like that.
    fn class_bound(&self) -> Result<Option<usize>> {
        match self.classes {
            0 => Ok(None),
            1 => Err(Error::data(self.label_path(), "labels", "at least two classes", "every label is 0")
                .with_hint("is this the right label array or column?")),
            n => Ok(Some(n)),
        }
    }

    /// The file to name in an error about labels.
    fn label_path(&self) -> PathBuf {
        self.source.last().map_or_else(|| self.path(), |file| file.path.clone())
    }

    /// The file to name in an error about rows.
    fn path(&self) -> PathBuf {
        self.source.first().map_or_else(|| PathBuf::from("(memory)"), |file| file.path.clone())
    }
}

/// Checks count and range of `labels` and returns the number of classes.
fn check_labels(path: &Path, labels: &[u32], rows: usize, classes: Option<usize>) -> Result<usize> {
    if labels.len() != rows {
        return Err(Error::data(
            path,
            "labels",
            format!("{rows} labels, one per row"),
            labels.len().to_string(),
        ));
    }
    let bound = classes.unwrap_or(MAX_CLASSES);
    let outside = |&(_, &label): &(usize, &u32)| label != UNLABELLED && label as usize >= bound;
    if let Some((row, label)) = labels.iter().enumerate().find(outside) {
        return Err(Error::data(
            path,
            format!("label of row {row}"),
            format!("a class in 0..{bound}"),
            label.to_string(),
        )
        .with_hint("labels count from 0; if there are more classes, say how many"));
    }
    Ok(classes.unwrap_or_else(|| {
        let known = labels.iter().filter(|&&label| label != UNLABELLED);
        known.max().map_or(0, |&label| label as usize + 1)
    }))
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Copies the rows of `index`, `n` values each.
fn gather<T: Copy>(from: &[T], index: &[u32], n: usize) -> Vec<T> {
    let mut to = Vec::with_capacity(index.len() * n);
    for &row in index {
        to.extend_from_slice(&from[row as usize * n..][..n]);
    }
    to
}
