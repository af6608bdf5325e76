//! Shards of logits, written and read again.

use std::fs;
use std::path::Path;

use limbeck::distill::logits::{Logits, Manifest, Shard, ShardWriter, TopK, Wanted};
use limbeck::mlp::weights::StoredType;

const ROWS: usize = 6;
const CLASSES: usize = 5;

fn manifest(rows: [usize; 2], top_k: Option<TopK>) -> Manifest {
    Manifest {
        schema_version: 1,
        producer: "limbeck test".to_owned(),
        rows,
        total_rows: ROWS,
        part: "train".to_owned(),
        classes: CLASSES,
        teacher_sha256: "teacher".to_owned(),
        data_sha256: "data".to_owned(),
        batch_size: 4,
        adapter: "none".to_owned(),
        top_k,
    }
}

const WANTED: Wanted<'_> =
    Wanted { rows: ROWS, classes: CLASSES, data_sha256: "data", part: "train", temperature: 2.0 };

fn logits() -> Vec<f32> {
    (0..ROWS * CLASSES).map(|i| (i * 7 % 11) as f32 - 5.0).collect()
}

fn write(folder: &Path, top_k: Option<TopK>, dtype: StoredType) {
    for index in 0..2 {
        let shard = Shard { index, count: 2 };
        let rows = shard.rows(ROWS);
        let mut writer =
            ShardWriter::create(&shard.path(folder), manifest([rows.start, rows.end], top_k), dtype)
                .expect("a shard begins");
        // In pieces, as batches come.
        for row in logits()[rows.start * CLASSES..rows.end * CLASSES].chunks(CLASSES) {
            writer.push(row).expect("a row");
        }
        writer.finish().expect("a shard");
    }
}

#[test]
fn what_is_written_is_read_again() {
    for dtype in [StoredType::F32, StoredType::F16] {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), None, dtype);
        // Small whole numbers: f16 holds them exactly.
        assert_eq!(Logits::load(folder.path(), &WANTED).expect("logits").values, logits());
        write(folder.path(), Some(TopK { k: 4, temperature: 2.0 }), dtype);
        // One class is left out: its logit is known from the mass.
        let read = Logits::load(folder.path(), &WANTED).expect("logits").values;
        assert!(read.iter().zip(logits()).all(|(a, b)| (a - b).abs() < 1e-5), "{read:?}");
    }
}

#[test]
fn an_unfinished_shard_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("logits-00000-of-00001.safetensors");
    let mut writer = ShardWriter::create(&path, manifest([0, ROWS], None), StoredType::F16).expect("begun");
    writer.push(&[1.0; CLASSES]).expect("a row");
    for (bad, words) in [(f32::NAN, "row 1, class 2"), (1e6, "too large for f16")] {
        let error = writer.push(&[1.0, 2.0, bad, 3.0, 4.0]).expect_err("refused");
        assert!(error.to_string().contains(words), "{error}");
    }
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
}
