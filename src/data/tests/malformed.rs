//! What is wrong is said: file, place, expected, found.

use super::idx_sets::small;
use super::*;

/// The small set with file `i` replaced.
#[track_caller]
fn small_with(i: usize, bytes: Vec<u8>, wanted: &[&str]) {
    let mut files = small();
    files[i].1 = bytes;
    let name = files[i].0;
    let folder = folder(&files);
    fails(folder.path(), &LoadOptions::default(), &[&[name], wanted].concat());
}

#[test]
fn missing_folder_file_and_format() {
    let options = LoadOptions::default();
    fails("/no/such/folder", &options, &["/no/such/folder", "check the path"]);
    let empty = tempfile::tempdir().unwrap();
    fails(empty.path(), &options, &["train-images-idx3-ubyte[.gz]", "x_train.npy"]);
    for (i, name) in [
        (0, "train-images-idx3-ubyte[.gz]"),
        (1, "train-labels-idx1"),
        (2, "t10k-images"),
        (3, "test-labels"),
    ] {
        let mut files = small();
        files.remove(i);
        fails(folder(&files).path(), &options, &[name, "no such file"]);
    }
    for (name, hint) in
        [("a.pt", "torch.load"), ("a.pkl", "pickle.load"), ("a.h5", "h5py"), ("a.xyz", "`.xyz`")]
    {
        let folder = folder(&[(name, vec![1])]);
        fails(folder.path().join(name), &options, &[hint, ".safetensors"]);
    }
}

#[test]
fn corrupt_gzip() {
    let whole = gz(&small()[0].1);
    for cut in [3, 12, whole.len() - 9, whole.len() - 1] {
        small_with(0, whole[..cut].to_vec(), &["valid file", "fetch it again"]);
    }
    let mut flipped = whole.clone();
    let crc = flipped.len() - 6;
    flipped[crc] ^= 1;
    small_with(0, flipped, &["valid file"]);
    let mut trailing = whole;
    trailing.extend(b"trailing");
    small_with(0, trailing, &["valid file"]);
}

#[test]
fn wrong_idx_header() {
    small_with(0, b"<!DOCTYPE html>".to_vec(), &["magic", "3c 21 44 4f", "web page"]);
    small_with(0, b"PK\x03\x04".to_vec(), &["magic", "zip"]);
    small_with(0, vec![0, 0, 0x0a, 1, 0, 0, 0, 1], &["magic", "00 00 0a 01"]);
    small_with(0, vec![0, 0, 8, 0], &["1 to 8 dimensions"]);
    small_with(0, vec![0, 0, 8, 3, 0, 0], &["dimension 0"]);
    small_with(0, vec![], &["magic"]);
    small_with(0, idx(8, &[0, 2, 2], &[]), &["at least one row"]);
    small_with(0, idx(8, &[3, 0, u32::MAX], &[]), &["at least one row"]);
}

#[test]
fn header_and_payload_that_differ() {
    small_with(0, idx(8, &[3, 2, 2], &[0; 11]), &["12 bytes", "11 bytes", "truncated"]);
    small_with(0, idx(8, &[3, 2, 2], &[0; 13]), &["12 bytes", "more bytes after"]);
    small_with(0, gz(&idx(8, &[3, 2, 2], &[0; 13])), &["12 bytes", "more bytes after"]);
    // Terabytes on a header's word, plain and packed, and a product beyond 2^64.
    small_with(0, idx(8, &[1 << 20, 1 << 10, 1 << 10], &[0; 12]), &["promised", "truncated"]);
    small_with(0, gz(&idx(14, &[1 << 20, 1 << 10, 1 << 10], &[0; 12])), &["promised"]);
    small_with(0, idx(8, &[u32::MAX; 8], &[0; 12]), &["promised"]);
}

#[test]
fn labels_that_do_not_fit() {
    small_with(1, idx(8, &[2], &[0, 1]), &["3 labels", "found 2"]);
    small_with(1, idx(8, &[3, 2], &[0; 6]), &["shape [3, 2]", "argmax"]);
    small_with(3, idx(8, &[2], &[0, 3]), &["label of row 1", "0..3", "found 3"]);
    small_with(1, idx(12, &[3], &[0, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 1]), &["label of row 1", "65536"]);
    small_with(1, idx(13, &[3], &[0.0_f32, 1.5, 1.0].map(f32::to_be_bytes).concat()), &["row 1", "1.5"]);
    small_with(1, idx(8, &[3], &[0; 3]), &["at least two classes"]);
    let folder = folder(&small());
    let options = LoadOptions { classes: Some(2), ..Default::default() };
    fails(folder.path(), &options, &["label of row 0", "0..2", "found 2"]);
}

#[test]
fn parts_that_do_not_fit() {
    small_with(2, idx(8, &[2, 3, 2], &[0; 12]), &["4 u8 values", "6 u8 values"]);
    small_with(2, idx(9, &[2, 2, 2], &[0; 8]), &["4 u8 values", "4 float values"]);
}

#[test]
fn values_that_are_not_finite() {
    small_with(
        0,
        idx(13, &[3, 1], &[1.0, f32::NAN, 0.0].map(f32::to_be_bytes).concat()),
        &["row 1, feature 0", "NaN"],
    );
    small_with(
        0,
        idx(14, &[3, 1], &[1.0, 2.0, 1e300].map(f64::to_be_bytes).concat()),
        &["row 2", "finite f32"],
    );
}

#[cfg(unix)]
#[test]
fn devices_and_folders_are_no_files() {
    fails("/dev/zero", &LoadOptions::default(), &["/dev/zero"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("x_train.npy")).unwrap();
    std::fs::write(folder.path().join("y_train.npy"), [0]).unwrap();
    fails(folder.path(), &LoadOptions::default(), &["regular file"]);
}
