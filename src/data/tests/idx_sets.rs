//! IDX: valid sets, the embedded set, selection.

use sha2::{Digest, Sha256};

use super::*;

/// Three training and two test images of 2x2 bytes, labels below 3.
pub(super) fn small() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("train-images-idx3-ubyte", idx(8, &[3, 2, 2], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255])),
        ("train-labels-idx1-ubyte", idx(8, &[3], &[2, 0, 1])),
        ("t10k-images-idx3-ubyte", idx(8, &[2, 2, 2], &[9; 8])),
        ("t10k-labels-idx1-ubyte", idx(8, &[2], &[0, 2])),
    ]
}

fn is_small(split: &Split) {
    let train = &split.train;
    assert_eq!((train.rows(), train.features(), train.classes), (3, 4, 3));
    assert_eq!(train.shape, [2, 2]);
    assert_eq!(train.labels.as_deref(), Some([2, 0, 1].as_slice()));
    assert_eq!(values(train)[11], 255.0);
    assert!(train.x.is_u8());
    assert_eq!(train.bytes(), 12);
    let mut row = [0.0; 4];
    train.row_f32(2, &mut row).unwrap();
    assert_eq!(row[3], 1.0);
    let test = split.test.as_ref().unwrap();
    assert_eq!((test.rows(), test.classes), (2, 3));
}

#[test]
fn plain_gzipped_prefixed_and_dotted_names() {
    let options = LoadOptions::default();
    is_small(&load(folder(&small()).path(), &options).unwrap());
    let renamed = |rename: fn(&str) -> String, pack: fn(&[u8]) -> Vec<u8>| {
        let files = small();
        let names: Vec<String> = files.iter().map(|(name, _)| rename(name)).collect();
        let files: Vec<_> = names.iter().zip(&files).map(|(name, (_, b))| (name.as_str(), pack(b))).collect();
        let folder = folder(&files);
        is_small(&load(folder.path(), &options).unwrap());
        is_small(&load(folder.path().join(&names[0]), &options).unwrap());
    };
    renamed(|n| format!("{n}.gz"), gz);
    // Unpacked in passing by a browser, still named .gz.
    renamed(|n| format!("{n}.gz"), <[u8]>::to_vec);
    renamed(|n| format!("emnist-letters-{}.gz", n.replace("t10k", "test")), gz);
    renamed(|n| n.replace("-idx", ".idx"), <[u8]>::to_vec);
}

#[test]
fn two_sets_in_a_folder_need_a_choice() {
    let files = small();
    let names: Vec<String> = files.iter().map(|(name, _)| format!("emnist-digits-{name}")).collect();
    let mut all = files.clone();
    all.extend(names.iter().zip(&files).map(|(name, (_, bytes))| (name.as_str(), bytes.clone())));
    let folder = folder(&all);
    let options = LoadOptions::default();
    fails(folder.path(), &options, &["`emnist-digits-`", "train-images file"]);
    is_small(&load(folder.path().join("train-images-idx3-ubyte"), &options).unwrap());
    is_small(&load(folder.path().join("emnist-digits-t10k-labels-idx1-ubyte"), &options).unwrap());
}

#[test]
fn every_element_type() {
    let labels = idx(8, &[2], &[0, 1]);
    let be = |values: &[&[u8]]| values.concat();
    let cases: [(u8, Vec<u8>, [f32; 2]); 5] = [
        (0x09, vec![0xff, 5], [-1.0, 5.0]),
        (0x0b, be(&[&(-300_i16).to_be_bytes(), &7_i16.to_be_bytes()]), [-300.0, 7.0]),
        (0x0c, be(&[&70_000_i32.to_be_bytes(), &(-1_i32).to_be_bytes()]), [70_000.0, -1.0]),
        (0x0d, be(&[&0.5_f32.to_be_bytes(), &(-2.0_f32).to_be_bytes()]), [0.5, -2.0]),
        (0x0e, be(&[&0.1_f64.to_be_bytes(), &3.0_f64.to_be_bytes()]), [0.1, 3.0]),
    ];
    for (kind, bytes, want) in cases {
        let folder = folder(&[
            ("train-images-idx2", idx(kind, &[2, 1], &bytes)),
            ("train-labels-idx1", idx(0x0c, &[2], &[0, 0, 0, 0, 0, 0, 0, 1])),
        ]);
        let split = load(folder.path(), &LoadOptions::default()).unwrap();
        assert_eq!(values(&split.train), want, "type {kind:x}");
        assert_eq!(split.train.normalisation.scale, 1.0);
        assert!(split.test.is_none());
        std::fs::write(folder.path().join("train-labels-idx1"), &labels).unwrap();
        assert!(load(folder.path(), &LoadOptions::default()).is_ok());
    }
}

#[test]
fn options_set_classes_scale_and_missing_labels() {
    let folder = folder(&small()[..1]);
    let options = LoadOptions { require_labels: false, scale: Some(0.5), ..Default::default() };
    let split = load(folder.path(), &options).unwrap();
    assert_eq!(
        (split.train.labels.as_ref(), split.train.classes, split.train.normalisation.scale),
        (None, 0, 0.5)
    );
    let folder = super::folder(&small());
    let options = LoadOptions { classes: Some(10), ..Default::default() };
    assert_eq!(load(folder.path(), &options).unwrap().train.classes, 10);
}

#[test]
fn the_source_is_recorded_as_sha256sum_prints_it() {
    let folder = folder(&[("train-images-idx3-ubyte.gz", gz(&small()[0].1)), small()[1].clone()]);
    let split = load(folder.path(), &LoadOptions::default()).unwrap();
    for file in &split.train.source {
        let bytes = std::fs::read(&file.path).unwrap();
        assert_eq!(file.sha256, Some(super::super::read::hex(&Sha256::digest(bytes))));
    }
    assert_eq!(split.train.source.len(), 2);
}

#[test]
fn select_and_keep_labels() {
    let split = load(folder(&small()).path(), &LoadOptions::default()).unwrap();
    let picked = split.train.select(&[2, 0, 2]);
    assert_eq!(values(&picked), [8., 9., 10., 255., 0., 1., 2., 3., 8., 9., 10., 255.]);
    assert_eq!(picked.labels.as_deref(), Some([1, 2, 1].as_slice()));
    let few = split.train.clone().keep_labels(&[1]);
    assert_eq!(few.labels.as_deref(), Some([UNLABELLED, 0, UNLABELLED].as_slice()));
    assert_ne!(split.train.content_sha256().unwrap(), few.content_sha256().unwrap());
    assert_eq!(
        split.train.content_sha256().unwrap(),
        split.train.select(&[0, 1, 2]).content_sha256().unwrap()
    );
}

#[test]
fn the_embedded_set_is_optdigits() {
    let split = optdigits().unwrap();
    let test = split.test.as_ref().unwrap();
    assert_eq!((split.train.rows(), test.rows()), (3823, 1797));
    assert_eq!((split.train.shape.as_slice(), split.train.classes), ([8, 8].as_slice(), 10));
    assert_eq!(split.train.normalisation.scale, 1.0 / 16.0);
    let largest = |set: &Dataset| values(set).into_iter().fold(0.0, f32::max);
    assert_eq!((largest(&split.train), largest(test)), (16.0, 16.0));
    // UCI's documentation, optdigits.names: the rows of each class in .tra and .tes.
    let count = |set: &Dataset, class| set.labels.iter().flatten().filter(|&&l| l == class).count();
    let train: Vec<_> = (0..10).map(|class| count(&split.train, class)).collect();
    let tests: Vec<_> = (0..10).map(|class| count(test, class)).collect();
    assert_eq!(train, [376, 389, 380, 389, 387, 376, 377, 387, 380, 382]);
    assert_eq!(tests, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
}

#[test]
fn mnist_and_fashion_mnist_where_they_are() {
    for name in ["mnist", "fashion-mnist"] {
        let Some(path) = shared(name) else { continue };
        let split = load(path, &LoadOptions::default()).unwrap();
        assert_eq!((split.train.rows(), split.train.features(), split.train.classes), (60_000, 784, 10));
        assert_eq!(split.test.unwrap().rows(), 10_000);
    }
}
