//! Shards out: streamed to a temporary file beside the target, renamed when whole.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Manifest;
use super::read::open_shard;
use crate::error::{Error, Result};
use crate::mlp::weights::StoredType;

/// Writes one shard, row by row. Dropped unfinished, it leaves nothing behind.
pub struct ShardWriter {
    path: PathBuf,
    file: std::io::BufWriter<tempfile::NamedTempFile>,
    manifest: Manifest,
    dtype: StoredType,
    hash: Sha256,
    /// Where in the header the payload's hash goes when it is known.
    hash_at: u64,
    written: usize,
    /// Of a thinned-out shard: its other tensors, small enough to keep until the values are out.
    indices: Vec<u32>,
    rest: Vec<f32>,
    largest: f64,
    divergence: f64,
}

const NO_HASH: &str = "----------------------------------------------------------------";

impl ShardWriter {
    /// Begins the shard at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be written.
    pub fn create(path: &Path, manifest: Manifest, dtype: StoredType) -> Result<Self> {
        let failed = |e| Error::io("write", path, e);
        let header = header(&manifest, dtype)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = std::io::BufWriter::new(tempfile::NamedTempFile::new_in(folder).map_err(failed)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
        file.write_all(header.as_bytes()).map_err(failed)?;
        let hash_at = 8 + header.find(NO_HASH).expect("the header has a place for it") as u64;
        Ok(Self {
            path: path.to_owned(),
            file,
            manifest,
            dtype,
            hash: Sha256::new(),
            hash_at,
            written: 0,
            indices: Vec::new(),
            rest: Vec::new(),
            largest: 0.0,
            divergence: 0.0,
        })
    }

    /// Appends rows of `classes` logits each.
    ///
    /// # Errors
    /// [`Error::Run`] for a logit that is not finite or too large for the type; [`Error::Io`].
    pub fn push(&mut self, logits: &[f32]) -> Result<()> {
        let classes = self.manifest.classes;
        let refuse = |at: usize, what: &str| {
            Error::Run(format!(
                "row {}, class {}: the teacher's logit {} {what}",
                self.manifest.rows[0] + self.written + at / classes,
                at % classes,
                logits[at],
            ))
        };
        if let Some(at) = logits.iter().position(|v| !v.is_finite()) {
            return Err(refuse(at, "is not a finite number"));
        }
        if let Some(at) = self.dtype.overflow(logits) {
            return Err(refuse(at, "is too large for f16; use --dtype f32"));
        }
        let bytes = match self.manifest.top_k {
            None => self.dtype.encode(logits),
            Some(top) => {
                let mut bytes = Vec::new();
                for row in logits.chunks_exact(classes) {
                    let kept = top.keep(row);
                    bytes.extend(self.dtype.encode(&kept.values));
                    self.indices.extend(kept.indices);
                    self.rest.push(kept.rest);
                    self.largest = self.largest.max(kept.bound);
                    self.divergence = self.divergence.max(kept.divergence);
                }
                bytes
            }
        };
        self.written += logits.len() / classes;
        self.put(&bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))
    }

    /// Completes the file and gives, for a thinned-out shard, the largest bound and the largest
    /// divergence of a row, in nats.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk is full.
    ///
    /// # Panics
    /// Where rows are missing: our own bug.
    pub fn finish(mut self) -> Result<Option<[f64; 2]>> {
        let [first, end] = self.manifest.rows;
        assert_eq!(self.written, end - first, "rows of the shard");
        if self.manifest.top_k.is_some() {
            let indices: Vec<u8> = self.indices.iter().flat_map(|i| i.to_le_bytes()).collect();
            let rest: Vec<u8> = self.rest.iter().flat_map(|v| v.to_le_bytes()).collect();
            self.put(&indices)?;
            self.put(&rest)?;
        }
        let hash: String = self.hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let failed = |e| Error::io("write", &self.path, e);
        let mut file = self.file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.seek(SeekFrom::Start(self.hash_at)).map_err(failed)?;
        file.write_all(hash.as_bytes()).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&self.path).map_err(|e| failed(e.error))?;
        Ok(self.manifest.top_k.map(|_| [self.largest, self.divergence]))
    }
}

/// The JSON header, padded so that the values begin at a multiple of 8 bytes.
fn header(manifest: &Manifest, dtype: StoredType) -> Result<String> {
    let rows = manifest.rows[1] - manifest.rows[0];
    let (name, size) = (dtype.name(), dtype.encode(&[0.0]).len());
    let json = |e: serde_json::Error| Error::Run(e.to_string());
    let text = serde_json::to_string(manifest).map_err(json)?;
    let mut header = serde_json::json!({
        "__metadata__": { "format": "np", "limbeck_logits": text, "payload_sha256": NO_HASH },
    });
    let mut at = 0;
    let mut tensor = |name: &str, dtype: &str, shape: &[usize], size: usize| {
        let end = at + shape.iter().product::<usize>() * size;
        header[name] = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] });
        at = end;
    };
    match manifest.top_k {
        None => tensor("logits", name, &[rows, manifest.classes], size),
        Some(top) => {
            tensor("values", name, &[rows, top.k], size);
            tensor("indices", "U32", &[rows, top.k], 4);
            tensor("rest", "F32", &[rows], 4);
        }
    }
    let mut text = header.to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    Ok(text)
}

/// True if `path` holds this shard whole: a rerun leaves it. A file that is broken is to be written again.
///
/// # Errors
/// [`Error::Data`] for a shard of another teacher, other data or other options: it is not ours to replace.
pub fn is_done(path: &Path, manifest: &Manifest) -> Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    let Ok(bytes) = std::fs::read(path) else { return Ok(false) };
    let Ok(shard) = open_shard(path, &bytes, manifest.total_rows * manifest.classes) else {
        return Ok(false);
    };
    let Some(found) = &shard.manifest else { return Ok(false) };
    if let Err((what, expected, found)) = manifest.same_set(found) {
        return Err(Error::data(path, format!("manifest, {what}"), expected, found)
            .with_hint("this folder holds logits of something else: choose another --out, or --force"));
    }
    Ok(found.rows == manifest.rows)
}
