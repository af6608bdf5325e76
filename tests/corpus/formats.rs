//! The formats: which files they take, and how each is read.

use std::io::Write as _;
use std::path::Path;

use limbeck::Result;
use limbeck::data::{LoadOptions, load};
use limbeck::distill::logits::{Logits, Manifest, Shard, ShardWriter, TopK, Wanted};
use limbeck::mlp::weights::{Model, ReadOptions, StoredType};

/// A kind of file and its reader.
pub(crate) struct Format {
    /// Its folder.
    pub(crate) name: &'static str,
    /// The file that is damaged.
    pub(crate) target: &'static str,
    /// What is read, below the folder.
    pub(crate) path: &'static str,
    /// Reads it: path, the damaged bytes, the valid ones. Says what it saw.
    pub(crate) read: fn(&Path, &[u8], &[u8]) -> Result<String>,
    /// Files that once were, or easily could be, trouble.
    pub(crate) by_hand: fn() -> Vec<Vec<u8>>,
}

const fn format(
    name: &'static str,
    target: &'static str,
    path: &'static str,
    read: fn(&Path, &[u8], &[u8]) -> Result<String>,
    by_hand: fn() -> Vec<Vec<u8>>,
) -> Format {
    Format { name, target, path, read, by_hand }
}

const SHARD: &str = "logits-00001-of-00002.safetensors";

pub(crate) const FORMATS: &[Format] = &[
    format("idx", "train-images-idx3-ubyte", "", data, Vec::new),
    format("idx-gz", "train-images-idx3-ubyte.gz", "", data, bombs),
    format("idx-labels", "train-labels-idx1-ubyte", "", data, Vec::new),
    format("npy", "x.npy", "", data, headers),
    format("npy-labels", "y.npy", "x.npy", data, headers),
    format("npz", "a.npz", "a.npz", data, archives),
    format("npz-deflated", "a.npz", "a.npz", data, archives),
    format("csv", "a.csv", "a.csv", data, tables),
    format("csv-bare", "a.csv", "a.csv", data, tables),
    format("safetensors", "a.safetensors", "a.safetensors", data, tensors),
    format("model", "m.safetensors", "m.safetensors", model, tensors),
    format("model-keras", "m.safetensors", "m.safetensors", model, tensors),
    format("model-index", "m.safetensors.index.json", "m.safetensors.index.json", model, indices),
    format("model-shard", "b.safetensors", "m.safetensors.index.json", model, tensors),
    format("logits", SHARD, "", logits, tensors),
    format("logits-top-k", SHARD, "", logits, tensors),
    format("matrix-npy", "m.npy", "m.npy", logits, headers),
    format("matrix-safetensors", "m.safetensors", "m.safetensors", logits, tensors),
];

/// Rows, resident and row by row.
fn data(path: &Path, bytes: &[u8], _: &[u8]) -> Result<String> {
    let read = |resident_limit| -> Result<String> {
        let split = load(path, &LoadOptions { resident_limit, ..LoadOptions::default() })?;
        // Deflate's bound times f32 from bytes of text, and then some.
        assert!(split.train.bytes() <= 8 * 1032 * (bytes.len() as u64 + 64));
        let mut out = vec![0.0; split.train.features()];
        split.train.row_f32(split.train.rows() - 1, &mut out)?;
        Ok(format!(
            "{} rows of {}, {} classes",
            split.train.rows(),
            split.train.features(),
            split.train.classes
        ))
    };
    if let Err(error) = read(16) {
        assert_eq!(error.exit_code(), 4, "{error}");
    }
    read(u64::MAX)
}

fn model(path: &Path, _: &[u8], _: &[u8]) -> Result<String> {
    let model = Model::load(path, &ReadOptions::default())?;
    for layer in &model.weights.layers {
        assert_eq!(layer.weight.len(), layer.inputs * layer.outputs);
        assert!(layer.weight.iter().chain(&layer.bias).all(|v| v.is_finite()));
    }
    Ok(format!("{:?} {}", model.weights.sizes(), model.weights.activation.name()))
}

const ROWS: usize = 6;
const CLASSES: usize = 5;
const WANTED: Wanted<'_> =
    Wanted { rows: ROWS, classes: CLASSES, data_sha256: "data", part: "train", temperature: 2.0 };

fn logits(path: &Path, bytes: &[u8], valid: &[u8]) -> Result<String> {
    let read = Logits::load(path, &WANTED)?;
    assert_eq!(read.values.len(), ROWS * CLASSES);
    assert!(read.values.iter().all(|v| v.is_finite()));
    if read.manifest.is_some() {
        let header = 8 + usize::from(bytes[0]) + 256 * usize::from(bytes[1]);
        let whole = 8 + usize::from(valid[0]) + 256 * usize::from(valid[1]);
        assert_eq!(&bytes[header..], &valid[whole..], "a changed payload was read");
    }
    Ok(format!("{} rows of {}", read.rows, read.classes))
}

/// The valid shards, whole and thinned out: small whole numbers.
pub(crate) fn write_logits(corpus: &Path) {
    for (name, top_k) in [("logits", None), ("logits-top-k", Some(TopK { k: 2, temperature: 2.0 }))] {
        let folder = corpus.join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        for index in 0..2 {
            let shard = Shard { index, count: 2 };
            let rows = shard.rows(ROWS);
            let manifest = Manifest {
                schema_version: 1,
                producer: "limbeck".to_owned(),
                rows: [rows.start, rows.end],
                total_rows: ROWS,
                part: "train".to_owned(),
                classes: CLASSES,
                teacher_sha256: "teacher".to_owned(),
                data_sha256: "data".to_owned(),
                batch_size: 4,
                adapter: "none".to_owned(),
                top_k,
            };
            let path = shard.path(&folder);
            let mut writer = ShardWriter::create(&path, manifest, StoredType::F32).expect("a shard");
            let values: Vec<f32> =
                (rows.start * CLASSES..rows.end * CLASSES).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
            writer.push(&values).expect("rows");
            writer.finish().expect("a shard");
        }
    }
}

/// Four mebibytes of zeros behind a header that promises two gibibytes.
fn bombs() -> Vec<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&[0, 0, 8, 3, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 1]).expect("written");
    encoder.write_all(&vec![0; 1 << 22]).expect("written");
    vec![encoder.finish().expect("written"), b"\x1f\x8b".to_vec(), Vec::new()]
}

fn headers() -> Vec<Vec<u8>> {
    let with = |text: &str| {
        [b"\x93NUMPY\x01\x00".as_slice(), &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
    };
    vec![
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(),
        with("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"),
        with("{'descr': '<f4', 'fortran_order': True, 'shape': (0, 99999999999, 99999999999)}"),
        with("{'descr': '|O', 'fortran_order': False, 'shape': (3, 2)}"),
    ]
}

fn archives() -> Vec<Vec<u8>> {
    let end = |fill: u8| [b"PK\x05\x06".as_slice(), &[fill; 18]].concat();
    vec![end(0xff), end(0), b"PK".to_vec(), Vec::new()]
}

fn tables() -> Vec<Vec<u8>> {
    vec![
        b"\"".repeat(1000),
        b",\n".to_vec(),
        b"\xff\xfe\x00".to_vec(),
        b"\xef\xbb\xbf".to_vec(),
        b"\n\n\n".to_vec(),
        b"1,2,0\n1,1e39,1\n".to_vec(),
        b"1,2,0\n1,2,4294967295\n".to_vec(),
    ]
}

fn tensors() -> Vec<Vec<u8>> {
    let with = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    vec![
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}".to_vec(),
        [b"\x00\x04\x00\x00\x00\x00\x00\x00".as_slice(), &[b'['; 1024]].concat(),
        with(r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#),
        with(r#"{"0.weight":{"dtype":"F32","shape":[0,0],"data_offsets":[0,0]}}"#),
        with("{}"),
        Vec::new(),
    ]
}

fn indices() -> Vec<Vec<u8>> {
    let to = |file: &str| format!(r#"{{"weight_map":{{"fc1.weight":"{file}"}}}}"#).into_bytes();
    let deep = "[".repeat(2000).into_bytes();
    vec![
        to("../a.safetensors"),
        to("/etc/passwd"),
        to(""),
        to("gone.safetensors"),
        b"{}".to_vec(),
        b"[]".to_vec(),
        deep,
    ]
}
