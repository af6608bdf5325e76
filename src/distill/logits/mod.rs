//! A teacher's logits on disk: written once, in shards, by any number of machines; read by any student.
//!
//! A shard is a safetensors file `logits-00002-of-00008.safetensors` with a [`Manifest`] in its metadata, so
//! that rows and what they are of appear together or not at all. Its tensors are `logits` `[rows, classes]`
//! (F32 or F16), or with top-k `values` and `indices` `[rows, k]` and `rest` `[rows]`.

mod read;
mod top_k;
mod write;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use read::{Logits, Wanted};
pub use top_k::{Kept, TopK};
pub use write::{ShardWriter, is_done};

use crate::error::{Error, Result};

/// What a shard holds and what of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of this form: 1.
    pub schema_version: u32,
    /// Version of the program that wrote it.
    pub producer: String,
    /// The first row and one past the last.
    pub rows: [usize; 2],
    /// Rows of the whole part.
    pub total_rows: usize,
    /// `train`, `validation` or `test`.
    pub part: String,
    /// Logits per row.
    pub classes: usize,
    /// [`teacher_sha256`].
    pub teacher_sha256: String,
    /// [`crate::data::Dataset::content_sha256`] of the whole part.
    pub data_sha256: String,
    /// Rows per forward pass: a training run of the same batch size sees the same bits as live.
    pub batch_size: usize,
    /// Which device computed them.
    pub adapter: String,
    /// Where only the largest logits were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<TopK>,
}

impl Manifest {
    /// Fails with what differs unless `other` belongs to the same set of shards, written the same way.
    fn same_set(&self, other: &Self) -> std::result::Result<(), (&'static str, String, String)> {
        let facts = |m: &Self| {
            [
                ("teacher_sha256", m.teacher_sha256.clone()),
                ("data_sha256", m.data_sha256.clone()),
                ("part", m.part.clone()),
                ("total_rows", m.total_rows.to_string()),
                ("classes", m.classes.to_string()),
                ("batch_size", m.batch_size.to_string()),
                ("top_k", format!("{:?}", m.top_k)),
            ]
        };
        for ((name, a), (_, b)) in facts(self).into_iter().zip(facts(other)) {
            if a != b {
                return Err((name, a, b));
            }
        }
        Ok(())
    }
}

/// Identifies what a teacher computes: its parameters, its activation and what it is given.
pub fn teacher_sha256(
    weights: &crate::mlp::weights::Weights,
    normalisation: &crate::data::Normalisation,
) -> Result<String> {
    use sha2::{Digest, Sha256};
    let json = serde_json::to_string(normalisation).map_err(|e| Error::Run(e.to_string()))?;
    let text = format!("{} {} {json}", weights.sha256(), weights.activation.name());
    Ok(Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect())
}

/// One part of the rows, as a job of an array takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

impl std::str::FromStr for Shard {
    type Err = Error;

    /// `i/n`, i from 0.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::usage("--shard", "i/n with 0 <= i < n, such as 0/8", format!("`{text}`"));
        let (index, count) = text.split_once('/').ok_or_else(bad)?;
        let number = |t: &str| t.trim().parse::<usize>().map_err(|_| bad());
        let shard = Self { index: number(index)?, count: number(count)? };
        if shard.index < shard.count && shard.count < 100_000 { Ok(shard) } else { Err(bad()) }
    }
}

impl Shard {
    /// What Slurm says about a job of an array: `SLURM_ARRAY_TASK_ID`, `_COUNT` and `_MIN` (an array may
    /// start at 1). `None` outside of one.
    ///
    /// # Errors
    /// [`Error::Usage`] where the variables contradict each other, as with `--array=0-30:2`.
    pub fn from_slurm(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = variable(name) else { return Ok(None) };
            text.parse().map(Some).map_err(|_| Error::usage(name, "a whole number", format!("`{text}`")))
        };
        let (Some(id), Some(count)) = (number("SLURM_ARRAY_TASK_ID")?, number("SLURM_ARRAY_TASK_COUNT")?)
        else {
            return Ok(None);
        };
        let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
        match id.checked_sub(first) {
            Some(index) if index < count => Ok(Some(Self { index, count })),
            _ => Err(Error::usage(
                "SLURM_ARRAY_TASK_ID",
                format!("one of {count} tasks from {first} without gaps"),
                id.to_string(),
            )
            .with_hint("submit with --array=0-N and without a step, or give --shard i/n")),
        }
    }

    /// Its share of `rows` rows; all shares differ by at most one row.
    pub fn rows(&self, rows: usize) -> Range<usize> {
        let cut = |i: usize| (i as u128 * rows as u128 / self.count as u128) as usize;
        cut(self.index)..cut(self.index + 1)
    }

    /// Its file in `folder`.
    pub fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("logits-{:05}-of-{:05}.safetensors", self.index, self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_all_rows_once() {
        for (rows, count) in [(1, 1), (10, 3), (3, 5), (1797, 8)] {
            let mut next = 0;
            for index in 0..count {
                let share = Shard { index, count }.rows(rows);
                assert_eq!(share.start, next);
                next = share.end;
            }
            assert_eq!(next, rows);
        }
    }

    #[test]
    fn shards_are_parsed_and_taken_from_slurm() {
        assert_eq!("2/8".parse::<Shard>().ok(), Some(Shard { index: 2, count: 8 }));
        for text in ["8/8", "1", "-1/3", "a/b", "0/0", "0/100000"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        let slurm = |id: &str, count: &str, min: &str| {
            let all = [("ID", id), ("COUNT", count), ("MIN", min)].map(|(k, v)| (k, v.to_owned()));
            Shard::from_slurm(move |name| {
                let found = all.iter().find(|(k, v)| name.ends_with(k) && !v.is_empty());
                found.map(|(_, v)| v.clone())
            })
        };
        assert_eq!(slurm("3", "4", "1").ok(), Some(Some(Shard { index: 2, count: 4 })));
        assert_eq!(slurm("3", "4", "").ok(), Some(Some(Shard { index: 3, count: 4 })));
        assert_eq!(slurm("3", "", "").ok(), Some(None));
        assert!(slurm("6", "4", "0").is_err(), "a step of 2");
        assert!(slurm("x", "4", "0").is_err());
    }
}
