//! Thousands of damaged files per format: an answer or an error, never a panic, never a long wait.

use proptest::prelude::*;
use safetensors::Dtype;

use super::*;

/// One damage: (kind, place, value), places as fractions of the length.
type Damage = (u8, f64, u8);

fn damage(bytes: &mut Vec<u8>, (kind, place, value): Damage) {
    let at = (place * bytes.len() as f64) as usize;
    match kind {
        _ if bytes.is_empty() => bytes.push(value),
        0 => bytes[at] = value,
        1 => bytes[at] ^= 1 << (value % 8),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, value),
        4 => {
            bytes.remove(at);
        }
        // Sizes are little- or big-endian words of 2, 4 or 8 bytes: a run of extremes hits them.
        5 => bytes[at..].iter_mut().take(8).for_each(|b| *b = 0xff),
        6 => bytes[at..].iter_mut().take(4).for_each(|b| *b = 0),
        7 => {
            let copy = bytes[at..].iter().take(usize::from(value)).copied().collect::<Vec<_>>();
            bytes.splice(at..at, copy);
        }
        _ => bytes.extend(std::iter::repeat_n(value, usize::from(value))),
    }
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    // Half of the places lie in the first tenth, where headers are.
    let place = prop_oneof![0.0..0.1, 0.0..1.0];
    proptest::collection::vec((0_u8..9, place, any::<u8>()), 1..4)
}

/// Damages `bytes` in 2000 ways and loads the file beside its companions, resident and row by row.
fn survives(name: &str, bytes: &[u8], companions: &[(&str, Vec<u8>)], path: &str) {
    let folder = folder(companions);
    let limits = [16, u64::MAX];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..Default::default()
    });
    let outcome = runner.run(&damages(), |damages| {
        let mut bytes = bytes.to_vec();
        damages.into_iter().for_each(|d| damage(&mut bytes, d));
        // A new file each time: truncating an old one makes ext4 wait for the disk.
        let _ = std::fs::remove_file(folder.path().join(name));
        std::fs::write(folder.path().join(name), &bytes).unwrap();
        for resident_limit in limits {
            let options = LoadOptions { resident_limit, ..Default::default() };
            match load(folder.path().join(path), &options) {
                Ok(split) => {
                    // Deflate's bound times f32 from bytes of text, and then some.
                    let bound = 8 * 1032 * (bytes.len() as u64 + 64);
                    prop_assert!(split.train.bytes() <= bound);
                    let mut out = vec![0.0; split.train.features()];
                    let _ = split.train.row_f32(split.train.rows() - 1, &mut out);
                }
                Err(error) => {
                    prop_assert_eq!(error.exit_code(), 4);
                    prop_assert!(error.to_string().len() < 4000, "{}", error);
                }
            }
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn idx_survives() {
    let mut files = idx_sets::small();
    let (name, bytes) = files.remove(0);
    survives(name, &bytes, &files, "");
    survives(name, &gz(&bytes), &files, "");
}

#[test]
fn idx_labels_survive() {
    let mut files = idx_sets::small();
    let (name, bytes) = files.remove(1);
    survives(name, &bytes, &files, "");
}

fn x() -> Vec<u8> {
    npy_bytes(ElementType::F32, &[3, 2], &f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
}

fn y() -> Vec<u8> {
    npy_bytes(ElementType::I64, &[3], &[0_i64, 1, 2].map(i64::to_le_bytes).concat())
}

#[test]
fn npy_survives() {
    survives("x.npy", &x(), &[("y.npy", y())], "");
    survives("y.npy", &y(), &[("x.npy", x())], "x.npy");
}

#[test]
fn npz_survives() {
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        let bytes = zip_of(&[("x_train.npy", x()), ("y_train.npy", y())], method);
        survives("a.npz", &bytes, &[], "a.npz");
    }
}

#[test]
fn csv_survives() {
    survives("a.csv", b"a,b,label\n1.5,2,cat\n-3,4e2,dog\n0,0,cat\n", &[], "a.csv");
    survives("a.csv", b"1.5;2;1\n-3;4e2;0\n", &[], "a.csv");
}

#[test]
fn safetensors_survives() {
    let bytes = safetensors_of(&[
        ("x", Dtype::F32, vec![3, 2], f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ("y", Dtype::U8, vec![3], vec![0, 1, 2]),
    ]);
    survives("a.safetensors", &bytes, &[], "a.safetensors");
}

/// Files that once were, or easily could be, trouble.
#[test]
fn corpus() {
    let options = LoadOptions::default();
    let bomb = gz(&[vec![0, 0, 8, 1, 0x7f, 0xff, 0xff, 0xff], vec![0; 1 << 22]].concat());
    let huge = b"\xff\xff\xff\xff\xff\xff\xff\x7f{}".to_vec();
    let deep = [b"\x00\x04\x00\x00\x00\x00\x00\x00".to_vec(), vec![b'['; 1024]].concat();
    let overflow = br#"{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
    let overflow = [&(overflow.len() as u64).to_le_bytes()[..], overflow].concat();
    for (name, bytes) in [
        ("train-images-idx1-ubyte.gz", bomb),
        ("a.safetensors", huge),
        ("b.safetensors", deep),
        ("c.safetensors", overflow),
        ("a.csv", b"\"".repeat(1000)),
        ("b.csv", b",\n".to_vec()),
        ("c.csv", b"\xff\xfe\x00".to_vec()),
        ("d.csv", b"\xef\xbb\xbf".to_vec()),
        ("e.csv", b"\n\n\n".to_vec()),
        ("a.npz", [b"PK\x05\x06".to_vec(), vec![0xff; 18]].concat()),
        ("b.npz", [b"PK\x05\x06".to_vec(), vec![0; 18]].concat()),
        ("x.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec()),
    ] {
        let folder = folder(&[(name, bytes)]);
        fails(folder.path().join(name), &options, &[]);
    }
}
