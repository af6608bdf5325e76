//! Rows that stay in their file.

use super::*;

fn lazy() -> LoadOptions {
    LoadOptions { resident_limit: 16, ..Default::default() }
}

#[test]
fn lazy_rows_equal_resident_rows() {
    let rows = 50_usize;
    let floats: Vec<f32> = (0..rows * 3).map(|i| i as f32 / 7.0).collect();
    let doubles: Vec<u8> = floats.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
    let bytes: Vec<u8> = (0..rows * 3).map(|i| i as u8).collect();
    let labels: Vec<u8> = (0..rows).map(|i| (i % 4) as u8).collect();
    for x in [
        npy_bytes(ElementType::F32, &[rows, 3], &f32s(&floats)),
        npy_bytes(ElementType::F64, &[rows, 3], &doubles),
        npy_bytes(ElementType::U8, &[rows, 3, 1], &bytes),
    ] {
        let folder = folder(&[("x.npy", x), ("y.npy", npy_bytes(ElementType::U8, &[rows], &labels))]);
        let there = load(folder.path(), &lazy()).unwrap().train;
        let here = load(folder.path(), &LoadOptions::default()).unwrap().train;
        assert!(matches!(there.x, Elements::File(_)) && !matches!(here.x, Elements::File(_)));
        assert_eq!(there.source[0].sha256, None);
        assert_eq!(there.content_sha256().unwrap(), here.content_sha256().unwrap());
        assert_eq!(
            (there.x.is_u8(), there.normalisation.scale, there.bytes()),
            (here.x.is_u8(), here.normalisation.scale, here.bytes())
        );
        let order = crate::rng::permutation(1, 1, rows as u32);
        for index in [order.clone(), (0..rows as u32).collect(), vec![7, 8, 9, 9, 10, 3]] {
            let read = |set: &Dataset| {
                let mut out = vec![0.0; index.len() * 3];
                set.read_rows(&index, &mut out).unwrap();
                out
            };
            assert_eq!(read(&there), read(&here));
            if here.x.is_u8() {
                let (mut a, mut b) = (vec![0; index.len() * 3], vec![1; index.len() * 3]);
                there.read_rows_u8(&index, &mut a).unwrap();
                here.read_rows_u8(&index, &mut b).unwrap();
                assert_eq!(a, b);
            }
        }
        // A selection of a selection is still a view of the file.
        let (a, b) = (there.select(&order).select(&[4, 2]), here.select(&order).select(&[4, 2]));
        assert_eq!(values(&a), values(&b));
        assert_eq!(a.labels, b.labels);
        assert_eq!(Normalisation::standardised(&there).unwrap(), Normalisation::standardised(&here).unwrap());
    }
}

#[test]
fn idx_stays_in_its_file_unless_gzipped() {
    let files = idx_sets::small();
    let split = load(folder(&files).path(), &lazy()).unwrap();
    assert!(matches!(split.train.x, Elements::File(_)));
    assert_eq!(values(&split.train)[11], 255.0);
    let packed: Vec<_> = files.iter().map(|(name, bytes)| (*name, gz(bytes))).collect();
    let split = load(folder(&packed).path(), &lazy()).unwrap();
    assert!(matches!(split.train.x, Elements::U8(_)));
}

#[test]
fn lazy_errors() {
    let y = npy_bytes(ElementType::U8, &[4], &[0, 1, 0, 1]);
    let x = |bytes: Vec<u8>| folder(&[("x.npy", bytes), ("y.npy", y.clone())]);
    let short = npy_bytes(ElementType::F32, &[4, 3], &[0; 47]);
    fails(x(short).path(), &lazy(), &["48 bytes", "47 bytes"]);
    let forged = npy_bytes(ElementType::F32, &[usize::MAX, 3], &[0; 48]);
    fails(x(forged).path(), &lazy(), &["2^64"]);
    let fortran = npy_raw(1, "{'descr': '<f4', 'fortran_order': True, 'shape': (4, 3), }", &[0; 48]);
    fails(x(fortran).path(), &lazy(), &["C order", "ascontiguousarray"]);

    // What could not be seen at loading is an error at reading.
    let nan = npy_bytes(ElementType::F32, &[4, 1], &f32s(&[0.0, 1.0, f32::NAN, 2.0]));
    let folder = x(nan);
    let set = load(folder.path(), &lazy()).unwrap().train;
    let mut out = [0.0; 2];
    set.read_rows(&[0, 1], &mut out).unwrap();
    let error = set.read_rows(&[1, 2], &mut out).unwrap_err().to_string();
    assert!(error.contains("row 2, feature 0"), "{error}");
    std::fs::OpenOptions::new().write(true).open(folder.path().join("x.npy")).unwrap().set_len(130).unwrap();
    let error = set.read_rows(&[1, 0], &mut out).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(error.to_string().contains("row 1, byte 132"), "{error}");
}

/// Peak resident memory of this process in bytes.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// 12 GiB of zeros that take no disk: loaded, shuffled and read without becoming resident.
#[cfg(target_os = "linux")]
#[test]
fn twelve_gib_are_read_with_bounded_memory() {
    let (rows, features) = (3 << 20, 1024);
    let folder = folder(&[("x.npy", npy::header(ElementType::F32, &[rows, features]))]);
    let file = std::fs::OpenOptions::new().write(true).open(folder.path().join("x.npy")).unwrap();
    file.set_len(file.metadata().unwrap().len() + (12 << 30)).unwrap();
    let before = peak();
    let options = LoadOptions { require_labels: false, ..Default::default() };
    let set = load(folder.path(), &options).unwrap().train;
    assert_eq!((set.rows(), set.bytes()), (rows, 12 << 30));
    let mut out = vec![1.0; 512 * features];
    for chunk in crate::rng::permutation(0, 0, rows as u32).chunks(512).take(100) {
        set.read_rows(chunk, &mut out).unwrap();
    }
    let last: Vec<u32> = (rows as u32 - 512..rows as u32).collect();
    set.read_rows(&last, &mut out).unwrap();
    assert!(out.iter().all(|&v| v == 0.0));
    // Far below the file's size; the order takes 60 MiB, and other tests run in this process.
    assert!(peak() - before < 2 << 30, "{} MiB", (peak() - before) >> 20);
}

/// A transfer set behind the training rows, whichever of them stays in its file.
#[test]
fn joined_rows_are_read_alike() {
    let table =
        |rows: usize, from: usize| -> Vec<f32> { (from..from + rows * 3).map(|i| i as f32 / 7.0).collect() };
    let bytes = |rows: usize, from: usize| -> Vec<u8> { (from..from + rows * 3).map(|i| i as u8).collect() };
    let y = |rows: usize| npy_bytes(ElementType::U8, &[rows], &vec![1; rows]);
    for floats in [true, false] {
        let x = |rows: usize, from: usize| match floats {
            true => npy_bytes(ElementType::F32, &[rows, 3], &f32s(&table(rows, from))),
            false => npy_bytes(ElementType::U8, &[rows, 3], &bytes(rows, from)),
        };
        let train = folder(&[("x.npy", x(20, 0)), ("y.npy", y(20))]);
        let transfer = folder(&[("x.npy", x(11, 100)), ("y.npy", y(11))]);
        let keep: Vec<u32> = vec![3, 1, 19, 4, 5, 6];
        let drop: Vec<u32> = vec![10, 0, 7, 8];
        let join = |a: &LoadOptions, b: &LoadOptions, some: bool| {
            let a = load(train.path(), a).unwrap().train;
            let b = load(transfer.path(), b).unwrap().train;
            let hash = a.content_sha256_with(Some(&b)).unwrap();
            match some {
                true => (a.select(&keep).with_unlabelled(b.select(&drop), 20).unwrap(), hash),
                false => (a.with_unlabelled(b, 20).unwrap(), hash),
            }
        };
        let here = LoadOptions::default();
        for some in [false, true] {
            let (wanted, hash) = join(&here, &here, some);
            assert!(!matches!(wanted.x, Elements::File(_)));
            assert_eq!(wanted.content_sha256().unwrap() == hash, !some);
            let rows = wanted.rows() as u32;
            let origins: Vec<u32> = (0..rows).map(|row| wanted.origin(row)).collect();
            match some {
                true => assert_eq!(origins, [3, 1, 19, 4, 5, 6, 30, 20, 27, 28]),
                false => assert_eq!(origins, (0..31).collect::<Vec<_>>()),
            }
            let labels = wanted.labels.clone().unwrap();
            let train_rows = if some { 6 } else { 20 };
            assert!(labels[..train_rows].iter().all(|l| *l == 1));
            assert!(labels[train_rows..].iter().all(|l| *l == UNLABELLED));
            for (a, b) in [(lazy(), lazy()), (lazy(), here.clone()), (here.clone(), lazy())] {
                let (found, same) = join(&a, &b, some);
                assert!(matches!(found.x, Elements::File(_)));
                assert_eq!((&hash, found.x.is_u8(), found.rows()), (&same, !floats, wanted.rows()));
                assert_eq!((&found.labels, values(&found)), (&wanted.labels, values(&wanted)));
                assert_eq!(found.content_sha256().unwrap(), wanted.content_sha256().unwrap());
                let order = crate::rng::permutation(2, 0, rows);
                assert_eq!(values(&found.select(&order)), values(&wanted.select(&order)));
                if !floats {
                    let read = |set: &Dataset| {
                        let mut out = vec![0; order.len() * 3];
                        set.read_rows_u8(&order, &mut out).unwrap();
                        out
                    };
                    assert_eq!(read(&found), read(&wanted));
                }
            }
        }
    }
}

#[test]
fn a_fingerprint_sees_what_a_sample_can() {
    let rows = 1000_usize;
    let set = |change: Option<(usize, f32)>, label: u8, options: &LoadOptions| {
        let mut x: Vec<f32> = (0..rows * 2).map(|i| i as f32).collect();
        change.into_iter().for_each(|(at, value)| x[at] = value);
        let y: Vec<u8> = (0..rows).map(|i| if i == 500 { label } else { (i % 3) as u8 }).collect();
        let x = npy_bytes(ElementType::F32, &[rows, 2], &f32s(&x));
        let folder = folder(&[("x.npy", x), ("y.npy", npy_bytes(ElementType::U8, &[rows], &y))]);
        load(folder.path(), options).unwrap().train
    };
    let print = |set: &Dataset| set.fingerprint().unwrap();
    let here = set(None, 0, &LoadOptions::default());
    assert_eq!(print(&here), here.content_sha256().unwrap());
    let there = set(None, 0, &lazy());
    assert!(print(&there).starts_with("sampled:"));
    assert_eq!(print(&there), print(&set(None, 0, &lazy())));
    // The first row, the last, a label, the order.
    for other in
        [set(Some((1, -1.0)), 0, &lazy()), set(Some((rows * 2 - 1, -1.0)), 0, &lazy()), set(None, 1, &lazy())]
    {
        assert_ne!(print(&there), print(&other));
    }
    let order = crate::rng::permutation(3, 0, rows as u32);
    assert_ne!(print(&there), print(&there.select(&order)));
    // Nor is every row read.
    assert_eq!(print(&there), print(&set(Some((2 * 2, -1.0)), 0, &lazy())));
}
