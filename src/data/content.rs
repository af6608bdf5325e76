//! A data set as a whole: its identity, and two of them as one.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{Dataset, Elements, FileRows, UNLABELLED, little_endian, read};
use crate::error::{Error, Result};

impl Dataset {
    /// Identifies the content, whatever file it came from: sha256, in hex, over element type, shape,
    /// values as stored and labels, little-endian. Reads a file's rows through once.
    pub fn content_sha256(&self) -> Result<String> {
        self.content_sha256_with(None)
    }

    /// The same of these rows followed by those of `more` without their labels, as
    /// [`Dataset::with_unlabelled`] joins them.
    pub fn content_sha256_with(&self, more: Option<&Self>) -> Result<String> {
        if let Some(more) = more {
            self.check_joins(more)?;
        }
        let mut sha = Sha256::new();
        let element = if self.x.is_u8() { "u8" } else { "f32" };
        let rows = self.rows + more.map_or(0, |more| more.rows);
        sha.update(format!("limbeck rows {element} {rows} {:?}\n", self.shape));
        for part in std::iter::once(self).chain(more) {
            part.hash_values(&mut sha)?;
        }
        for label in self.labels.iter().flatten() {
            sha.update(label.to_le_bytes());
        }
        if more.is_some() {
            let without = if self.labels.is_some() { self.rows..rows } else { 0..rows };
            without.for_each(|_| sha.update(UNLABELLED.to_le_bytes()));
        }
        Ok(read::hex(&sha.finalize()))
    }

    /// Identifies the rows without reading a large file through: [`Dataset::content_sha256`] of rows in
    /// memory; of rows that stay in their file `sampled:` and the sha256 of their number, shape and labels
    /// and of 257 rows spread evenly over them, the first and the last among them.
    pub fn fingerprint(&self) -> Result<String> {
        const SAMPLES: usize = 256;
        if !matches!(self.x, Elements::File(_)) {
            return self.content_sha256();
        }
        let last = self.rows.saturating_sub(1);
        let rows: Vec<u32> =
            (0..=SAMPLES).map(|i| (last as u128 * i as u128 / SAMPLES as u128) as u32).collect();
        let mut sha = Sha256::new();
        sha.update(format!("limbeck rows {} {:?}\n", self.rows, self.shape));
        if self.rows > 0 {
            sha.update(self.select(&rows).content_sha256()?);
        }
        for label in self.labels.iter().flatten() {
            sha.update(label.to_le_bytes());
        }
        Ok(format!("sampled:{}", read::hex(&sha.finalize())))
    }

    fn hash_values(&self, sha: &mut Sha256) -> Result<()> {
        match &self.x {
            Elements::U8(v) => sha.update(v),
            Elements::F32(v) => v.chunks(1 << 12).for_each(|v| sha.update(little_endian(v))),
            Elements::File(_) => {
                let n = self.features();
                let chunk = (1_usize << 18).div_ceil(n);
                for first in (0..self.rows).step_by(chunk) {
                    let index: Vec<u32> = (first..self.rows.min(first + chunk)).map(|i| i as u32).collect();
                    if self.x.is_u8() {
                        let mut out = vec![0; index.len() * n];
                        self.read_rows_u8(&index, &mut out)?;
                        sha.update(out);
                    } else {
                        let mut out = vec![0.0; index.len() * n];
                        self.read_rows(&index, &mut out)?;
                        sha.update(little_endian(&out));
                    }
                }
            }
        }
        Ok(())
    }

    /// The same rows with their classes numbered as in `names`, the outputs of a network; a set without
    /// names of its own stays as it is.
    ///
    /// Fails on a class that `names` does not have.
    pub fn with_class_names(mut self, names: &[String]) -> Result<Self> {
        let Some(own) = self.class_names.take().filter(|own| own.as_slice() != names) else {
            self.class_names = Some(names.to_vec());
            return Ok(self);
        };
        let number = |name: &String| {
            let place = names.iter().position(|n| n == name).map(|i| i as u32);
            place.ok_or_else(|| {
                let some: Vec<_> = names.iter().take(20).map(|name| format!("`{name:.40}`")).collect();
                let expected = format!("a class that the network knows, such as {}", some.join(", "));
                Error::data(self.path(), "labels", expected, format!("`{name:.60}`"))
            })
        };
        let numbers = own.iter().map(number).collect::<Result<Vec<u32>>>()?;
        for label in self.labels.iter_mut().flatten().filter(|label| **label != UNLABELLED) {
            *label = numbers[*label as usize];
        }
        self.classes = names.len();
        self.class_names = Some(names.to_vec());
        Ok(self)
    }

    /// Fails unless `more` has rows of the same kind.
    fn check_joins(&self, more: &Self) -> Result<()> {
        let facts = |d: &Self| {
            let element = if d.x.is_u8() { "u8" } else { "float" };
            format!("rows of {} {element} values", d.features())
        };
        match facts(self) == facts(more) {
            true => Ok(()),
            false => Err(Error::data(
                more.path(),
                "rows",
                format!("{} as in {}", facts(self), self.path().display()),
                facts(more),
            )),
        }
    }

    /// These rows followed by those of `more`, which lose their labels: only soft targets teach from them.
    /// [`Dataset::origin`] of the latter counts on from `loaded`, the rows of this set as it was loaded.
    ///
    /// Fails where features or element types differ.
    pub fn with_unlabelled(self, more: Self, loaded: usize) -> Result<Self> {
        self.check_joins(&more)?;
        let (rows, added) = (self.rows, more.rows);
        if u32::try_from(loaded.max(rows) + added).is_err() {
            return Err(Error::data(
                more.path(),
                "rows",
                "fewer than 2^32 with those before",
                added.to_string(),
            ));
        }
        let own = (0..rows as u32).map(|row| self.origin(row));
        let behind = (0..added as u32).map(|row| loaded as u32 + more.origin(row));
        let origin = Some(Arc::new(own.chain(behind).collect()));
        let x = match (self.x, more.x) {
            (Elements::U8(mut a), Elements::U8(b)) => {
                a.extend(b);
                Elements::U8(a)
            }
            (Elements::F32(mut a), Elements::F32(b)) => {
                a.extend(b);
                Elements::F32(a)
            }
            (a, b) => Elements::File(FileRows::joined(a, b, self.shape.iter().product())),
        };
        let mut labels = self.labels.unwrap_or_else(|| vec![UNLABELLED; rows]);
        labels.resize(rows + added, UNLABELLED);
        let source = self.source.into_iter().chain(more.source).collect();
        Ok(Self { x, labels: Some(labels), source, rows: rows + added, origin, ..self })
    }
}
