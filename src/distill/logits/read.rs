//! Logits in: our shards, or a matrix that anything else computed.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use sha2::{Digest, Sha256};

use super::top_k::Kept;
use super::{Manifest, TopK};
use crate::data::{self, Dataset};
use crate::error::{Error, Result};
use crate::mlp::weights::read::floats;

/// Logits for every row of a data set as it was loaded.
#[derive(Clone, Debug)]
pub struct Logits {
    /// Where they come from.
    pub path: PathBuf,
    /// Rows of the whole part.
    pub rows: usize,
    /// Logits per row.
    pub classes: usize,
    /// `[rows, classes]`, row-major.
    pub values: Vec<f32>,
    /// What a limbeck shard says of itself.
    pub manifest: Option<Manifest>,
}

/// What logits must be of.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Rows of the data as loaded.
    pub rows: usize,
    /// The student's classes.
    pub classes: usize,
    /// [`Dataset::content_sha256`] of the rows as loaded.
    pub data_sha256: &'a str,
    /// `train`, `validation` or `test`.
    pub part: &'a str,
    /// T of the soft term, which thinned-out logits must have been made for.
    pub temperature: f64,
}

/// One file's rows.
pub(super) struct Part {
    pub(super) manifest: Option<Manifest>,
    classes: usize,
    values: Vec<f32>,
}

impl Logits {
    /// Reads a folder of shards, one shard, or an `.npy` or `.safetensors` matrix `[rows, classes]`.
    ///
    /// # Errors
    /// [`Error::Data`] where a manifest does not match the data, shards leave a gap or overlap, a hash is
    /// wrong, or rows or classes are not those wanted.
    pub fn load(path: &Path, wanted: &Wanted<'_>) -> Result<Self> {
        let logits = if path.is_dir() { Self::folder(path, wanted)? } else { Self::file(path, wanted)? };
        let shape = |rows, classes| format!("{rows} rows of {classes} logits");
        if (logits.rows, logits.classes) != (wanted.rows, wanted.classes) {
            return Err(Error::data(
                path,
                "logits",
                format!("{}, as data and student have", shape(wanted.rows, wanted.classes)),
                shape(logits.rows, logits.classes),
            ));
        }
        Ok(logits)
    }

    /// The logits of `data`'s rows, in their order: matched by the number that each row had as loaded.
    pub fn of(&self, data: &Dataset) -> Vec<f32> {
        let rows = (0..data.rows() as u32).map(|row| data.origin(row) as usize);
        rows.flat_map(|row| &self.values[row * self.classes..][..self.classes]).copied().collect()
    }

    fn file(path: &Path, wanted: &Wanted<'_>) -> Result<Self> {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy")) {
            let (rows, classes, values) = data::read_matrix(path)?;
            return Ok(Self { path: path.to_owned(), rows, classes, values, manifest: None });
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let part = open_shard(path, &bytes, wanted.rows * wanted.classes)?;
        if part.manifest.is_some() {
            return Self::join(path, vec![(path.to_owned(), part)], wanted);
        }
        let rows = part.values.len() / part.classes.max(1);
        Ok(Self { path: path.to_owned(), rows, classes: part.classes, values: part.values, manifest: None })
    }

    fn folder(path: &Path, wanted: &Wanted<'_>) -> Result<Self> {
        let entries = std::fs::read_dir(path).map_err(|e| Error::io("read", path, e))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        files.retain(|p| {
            let name = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("logits-") && name.ends_with(".safetensors")
        });
        files.sort();
        if files.is_empty() {
            return Err(Error::data(path, "folder", "logits-00000-of-00001.safetensors and so on", "none"));
        }
        let parts = files
            .into_iter()
            .map(|file| {
                let bytes = std::fs::read(&file).map_err(|e| Error::io("read", &file, e))?;
                let part = open_shard(&file, &bytes, wanted.rows * wanted.classes)?;
                Ok((file, part))
            })
            .collect::<Result<Vec<_>>>()?;
        Self::join(path, parts, wanted)
    }

    fn join(path: &Path, parts: Vec<(PathBuf, Part)>, wanted: &Wanted<'_>) -> Result<Self> {
        let mut parts = parts
            .into_iter()
            .map(|(file, part)| match part.manifest {
                Some(manifest) => Ok((file, manifest, part.values)),
                None => Err(Error::data(&file, "metadata", "a manifest of limbeck logits", "none")),
            })
            .collect::<Result<Vec<_>>>()?;
        parts.sort_by_key(|(_, m, _)| m.rows);
        let Some(first) = parts.first().map(|(_, m, _)| m.clone()) else {
            return Err(Error::data(path, "folder", "at least one shard", "none"));
        };
        let mut values = Vec::new();
        let mut next = 0;
        for (file, manifest, own) in parts {
            if let Err((what, expected, found)) = first.same_set(&manifest) {
                return Err(Error::data(
                    file,
                    format!("manifest, {what}"),
                    format!("{expected} as in the other shards"),
                    found,
                ));
            }
            check(&file, &manifest, wanted)?;
            let [start, end] = manifest.rows;
            if start != next {
                let what = if start > next { "a gap between shards" } else { "shards that overlap" };
                return Err(Error::data(
                    &file,
                    "manifest, rows",
                    format!("a shard that begins at row {next}"),
                    format!("rows {start}..{end}: {what}"),
                )
                .with_hint("`limbeck logits` with the same options writes what is missing; remove shards of another count"));
            }
            next = end;
            values.extend(own);
        }
        if next != first.total_rows {
            return Err(Error::data(
                path,
                "shards",
                format!("rows 0..{}", first.total_rows),
                format!("rows 0..{next}: the last shards are missing"),
            )
            .with_hint("`limbeck logits` with the same options writes what is missing"));
        }
        Ok(Self { path: path.to_owned(), rows: next, classes: first.classes, values, manifest: Some(first) })
    }
}

fn check(file: &Path, manifest: &Manifest, wanted: &Wanted<'_>) -> Result<()> {
    let bad = |what: &str, expected: String, found: String| {
        Err(Error::data(file, format!("manifest, {what}"), expected, found))
    };
    if manifest.data_sha256 != wanted.data_sha256 || manifest.part != wanted.part {
        return bad(
            "data_sha256",
            format!("{} of the {} rows given as --data", wanted.data_sha256, wanted.part),
            format!("{} of {} rows", manifest.data_sha256, manifest.part),
        )
        .map_err(|e: Error| {
            e.with_hint("these are logits of other data; `limbeck logits` with the same --data and --transfer makes those of yours")
        });
    }
    #[allow(clippy::float_cmp, reason = "the same option, not the result of a computation")]
    if let Some(TopK { temperature, .. }) = manifest.top_k
        && temperature != wanted.temperature
    {
        return bad(
            "top_k.temperature",
            format!("the run's temperature {}", wanted.temperature),
            temperature.to_string(),
        )
        .map_err(|e: Error| {
            e.with_hint(
                "the tail's mass is right at one temperature only: write the logits anew for this one",
            )
        });
    }
    Ok(())
}

/// Reads one file: a shard, checked against its own hash, or a plain matrix.
///
/// `most` bounds the logits that a thinned-out shard may unfold to, whatever its manifest promises.
pub(super) fn open_shard(path: &Path, bytes: &[u8], most: usize) -> Result<Part> {
    let broken = |e: safetensors::SafeTensorError| {
        Error::data(path, "header", "a whole safetensors file", e.to_string())
            .with_hint("a shard that was cut short is written again by the same `limbeck logits` command")
    };
    let (length, metadata) = SafeTensors::read_metadata(bytes).map_err(broken)?;
    let file = SafeTensors::deserialize(bytes).map_err(broken)?;
    let empty = std::collections::HashMap::new();
    let metadata = metadata.metadata().as_ref().unwrap_or(&empty);
    let Some(text) = metadata.get("limbeck_logits") else {
        return plain(path, &file);
    };
    let manifest: Manifest = serde_json::from_str(text).map_err(|e| {
        Error::data(path, "metadata `limbeck_logits`", "a manifest of version 1", e.to_string())
    })?;
    let hash: String = Sha256::digest(bytes.get(8 + length..).unwrap_or_default())
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    if metadata.get("payload_sha256") != Some(&hash) {
        return Err(Error::data(
            path,
            "payload_sha256",
            metadata.get("payload_sha256").cloned().unwrap_or_else(|| "a hash".to_owned()),
            hash,
        )
        .with_hint("the shard is damaged: run the same `limbeck logits` command again"));
    }
    let rows = manifest.rows[1].checked_sub(manifest.rows[0]);
    let tensor = |name: &str, shape: &[usize]| {
        let at = format!("tensor `{name}`");
        let view = file.tensor(name).map_err(|_| Error::data(path, &at, "a tensor of a shard", "none"))?;
        match view.shape() == shape {
            true => Ok((at, view)),
            false => Err(Error::data(path, at, format!("shape {shape:?}"), format!("{:?}", view.shape()))),
        }
    };
    let (Some(rows), classes) = (rows, manifest.classes) else {
        return Err(Error::data(path, "manifest, rows", "a range", format!("{:?}", manifest.rows)));
    };
    let values = match manifest.top_k {
        None => {
            let (at, view) = tensor("logits", &[rows, classes])?;
            floats(path, &at, &view)?
        }
        Some(TopK { k, .. }) => {
            let (at, view) = tensor("values", &[rows, k])?;
            let values = floats(path, &at, &view)?;
            let (at, view) = tensor("rest", &[rows])?;
            let rest = floats(path, &at, &view)?;
            let (at, view) = tensor("indices", &[rows, k])?;
            let bytes = view.data().chunks_exact(4);
            let indices: Vec<u32> = bytes.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            if view.dtype() != Dtype::U32 || indices.iter().any(|i| *i as usize >= classes) {
                return Err(Error::data(path, at, format!("U32 below {classes}"), "something else"));
            }
            let size = rows.checked_mul(classes).filter(|n| *n <= most).ok_or_else(|| {
                let found = format!("{rows} rows of {classes}");
                Error::data(path, "manifest, rows and classes", format!("at most {most} logits"), found)
            })?;
            let mut dense = vec![0.0; size];
            for (row, out) in dense.chunks_exact_mut(classes.max(1)).enumerate() {
                let kept = row * k..(row + 1) * k;
                Kept::dense(&values[kept.clone()], &indices[kept], rest[row], out);
            }
            dense
        }
    };
    Ok(Part { manifest: Some(manifest), classes, values })
}

/// A file of someone else's: the tensor `logits`, or the only one there is.
fn plain(path: &Path, file: &SafeTensors<'_>) -> Result<Part> {
    let names = file.names();
    let name = match names[..] {
        [only] => only,
        _ => "logits",
    };
    let at = format!("tensor `{name}`");
    let view = file.tensor(name).map_err(|_| {
        let mut found: Vec<_> =
            names.iter().take(8).map(|n| n.chars().take(60).collect::<String>()).collect();
        found.sort();
        Error::data(path, "tensors", "one, or one named `logits`", found.join(", "))
    })?;
    let &[_, classes] = view.shape() else {
        return Err(Error::data(path, at, "shape [rows, classes]", format!("{:?}", view.shape())));
    };
    let values = floats(path, &at, &view)?;
    Ok(Part { manifest: None, classes, values })
}
