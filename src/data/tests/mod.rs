//! Behaviour of the room from its front door: files are written, [`load`] reads them back or says why not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "values are copied, not computed")]

mod big;
mod formats;
mod idx_sets;
mod malformed;
mod splits;

use std::io::Write;
use std::path::{Path, PathBuf};

use super::npy;
use super::*;

/// IDX bytes: `kind` as in the format, `values` already big-endian.
pub(super) fn idx(kind: u8, shape: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, shape.len() as u8];
    shape.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
    bytes.extend(values);
    bytes
}

pub(super) fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An .npy of any element type, `values` already encoded.
pub(super) fn npy_bytes(kind: ElementType, shape: &[usize], values: &[u8]) -> Vec<u8> {
    let mut bytes = npy::header(kind, shape);
    bytes.extend(values);
    bytes
}

/// An .npy with a header of one's own.
pub(super) fn npy_raw(version: u8, header: &str, values: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    if version == 1 {
        bytes.extend((header.len() as u16).to_le_bytes());
    } else {
        bytes.extend((header.len() as u32).to_le_bytes());
    }
    bytes.extend(header.as_bytes());
    bytes.extend(values);
    bytes
}

pub(super) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(super) fn zip_of(members: &[(&str, Vec<u8>)], method: zip::CompressionMethod) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub(super) fn safetensors_of(tensors: &[(&str, safetensors::Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.to_string(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// A folder with these files.
pub(super) fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// The values of all rows, as stored.
pub(super) fn values(set: &Dataset) -> Vec<f32> {
    let index: Vec<u32> = (0..set.rows() as u32).collect();
    let mut out = vec![0.0; set.rows() * set.features()];
    set.read_rows(&index, &mut out).unwrap();
    out
}

/// Loads and expects an error of exit code 4 whose text holds all of `wanted`.
#[track_caller]
pub(super) fn fails(path: impl AsRef<Path>, options: &LoadOptions, wanted: &[&str]) {
    let error = load(path, options).expect_err("should not load");
    let text = format!("{error} hint: {}", error.hint().unwrap_or("none"));
    assert_eq!(error.exit_code(), 4, "{text}");
    for word in wanted {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

/// Where the workspace's own copies of public sets lie, if this machine has them.
pub(super) fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new("/work/shared/data").join(name);
    path.is_dir().then_some(path)
}
