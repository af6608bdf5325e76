//! A data set as a whole: its identity, and two of them as one.

use sha2::{Digest, Sha256};

use super::{Dataset, Elements, UNLABELLED, little_endian, read};
use crate::error::{Error, Result};

impl Dataset {
    /// Identifies the content, whatever file it came from: sha256, in hex, over element type, shape,
    /// values as stored and labels, little-endian. Reads a file's rows through once.
    pub fn content_sha256(&self) -> Result<String> {
        let mut sha = Sha256::new();
        let element = if self.x.is_u8() { "u8" } else { "f32" };
        sha.update(format!("limbeck rows {element} {} {:?}\n", self.rows, self.shape));
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
        for label in self.labels.iter().flatten() {
            sha.update(label.to_le_bytes());
        }
        Ok(read::hex(&sha.finalize()))
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

    /// These rows followed by those of `more`, which lose their labels: only soft targets teach from them.
    ///
    /// Fails where features or element types differ, or where either part stays in its file.
    pub fn with_unlabelled(self, more: Self) -> Result<Self> {
        let facts = |d: &Self| {
            let element = if d.x.is_u8() { "u8" } else { "float" };
            format!("rows of {} {element} values", d.features())
        };
        if facts(&self) != facts(&more) {
            return Err(Error::data(
                more.path(),
                "rows",
                format!("{} as in {}", facts(&self), self.path().display()),
                facts(&more),
            ));
        }
        let (path, rows, added) = (more.path(), self.rows, more.rows);
        let x = match (self.x, more.x) {
            (Elements::U8(mut a), Elements::U8(b)) => {
                a.extend(b);
                Elements::U8(a)
            }
            (Elements::F32(mut a), Elements::F32(b)) => {
                a.extend(b);
                Elements::F32(a)
            }
            _ => {
                return Err(Error::data(
                    path,
                    "rows",
                    "parts that both fit in memory",
                    "one beyond the resident limit",
                )
                .with_hint("join the two in one file; rows with the label -1 have no label"));
            }
        };
        let mut labels = self.labels.unwrap_or_else(|| vec![UNLABELLED; rows]);
        labels.resize(rows + added, UNLABELLED);
        let source = self.source.into_iter().chain(more.source).collect();
        Ok(Self { x, labels: Some(labels), source, rows: rows + added, origin: None, ..self })
    }
}
