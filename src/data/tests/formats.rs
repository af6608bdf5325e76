//! npy, npz, csv and safetensors: every form reads back as written, and says what is wrong.

use half::{bf16, f16};
use safetensors::Dtype;
use zip::CompressionMethod::{Deflated, Stored};

use super::*;

fn u8s(values: &[u8]) -> Vec<u8> {
    npy_bytes(ElementType::U8, &[values.len()], values)
}

/// Loads `x` beside labels 0, 1 and gives the training rows.
fn rows_of(x: Vec<u8>) -> Dataset {
    let folder = folder(&[("x_train.npy", x), ("y_train.npy", u8s(&[0, 1]))]);
    load(folder.path(), &LoadOptions::default()).unwrap().train
}

#[track_caller]
fn npy_fails(x: Vec<u8>, wanted: &[&str]) {
    let folder = folder(&[("x_train.npy", x), ("y_train.npy", u8s(&[0, 1]))]);
    fails(folder.path(), &LoadOptions::default(), &[&["x_train.npy"], wanted].concat());
}

#[test]
fn npy_element_types_and_byte_orders() {
    let want = [3.0, 100.0];
    macro_rules! both_orders {
        ($descr:literal, $v:expr) => {
            let le = $v.map(|v| v.to_le_bytes()).concat();
            let be = $v.map(|v| v.to_be_bytes()).concat();
            for (order, bytes) in [("<", le), (">", be)] {
                let header =
                    format!("{{'descr': '{order}{}', 'fortran_order': False, 'shape': (2, 1), }}\n", $descr);
                assert_eq!(values(&rows_of(npy_raw(1, &header, &bytes))), want, "{header}");
            }
        };
    }
    both_orders!("u1", [3_u8, 100]);
    both_orders!("i1", [3_i8, 100]);
    both_orders!("u2", [3_u16, 100]);
    both_orders!("i2", [3_i16, 100]);
    both_orders!("u4", [3_u32, 100]);
    both_orders!("i4", [3_i32, 100]);
    both_orders!("u8", [3_u64, 100]);
    both_orders!("i8", [3_i64, 100]);
    both_orders!("f2", [f16::from_f32(3.0), f16::from_f32(100.0)]);
    both_orders!("f4", [3.0_f32, 100.0]);
    both_orders!("f8", [3.0_f64, 100.0]);
    let bools = npy_raw(1, "{'descr': '|b1', 'fortran_order': False, 'shape': (2,), }", &[0, 1]);
    assert_eq!(values(&rows_of(bools)), [0.0, 1.0]);
}

#[test]
fn npy_versions_key_orders_and_spacing() {
    let values_ = f32s(&[1.0, 2.0]);
    for (version, header) in [
        (1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }          \n"),
        (2, "{\"shape\":(2L,1L),\"fortran_order\":False,\"descr\":\"<f4\"}"),
        (3, "{ 'fortran_order' : False , 'shape' : ( 2 , 1 ) , 'descr' : '<f4' }\n"),
        (1, "{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }\n"),
    ] {
        assert_eq!(values(&rows_of(npy_raw(version, header, &values_))), [1.0, 2.0], "{header}");
    }
}

#[test]
fn npy_fortran_order_is_transposed() {
    // a[i, j, k] = 100 i + 10 j + k of shape (2, 3, 4), first index fastest.
    let mut f = Vec::new();
    for k in 0..4 {
        for j in 0..3 {
            f.extend([10 * j + k, 100 + 10 * j + k]);
        }
    }
    let want: Vec<f32> = (0..24).map(|i| (100 * (i / 12) + 10 * (i / 4 % 3) + i % 4) as f32).collect();
    let header = |descr| format!("{{'descr': '{descr}', 'fortran_order': True, 'shape': (2, 3, 4), }}");
    let set = rows_of(npy_raw(1, &header("|u1"), &f));
    assert_eq!((values(&set), set.shape.as_slice(), set.x.is_u8()), (want.clone(), [3, 4].as_slice(), true));
    let wide: Vec<u8> = f.iter().flat_map(|&v| i32::from(v).to_be_bytes()).collect();
    assert_eq!(values(&rows_of(npy_raw(1, &header(">i4"), &wide))), want);
}

#[test]
fn npy_malformed() {
    let ok = |descr: &str, order: &str, shape: &str| {
        npy_raw(1, &format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"), &[0; 8])
    };
    npy_fails(b"NUMPY".to_vec(), &["magic"]);
    npy_fails(b"\x93NUMPY\x04\x00\x00\x00".to_vec(), &["version 1.0, 2.0 or 3.0"]);
    npy_fails(npy_raw(2, &" ".repeat(70_000), &[]), &["header length", "70000"]);
    npy_fails(b"\x93NUMPY\x01\x00\xff\x00{'descr'".to_vec(), &["header", "truncated"]);
    npy_fails(ok("'|O'", "False", "(2, 1)"), &["plain numbers", "pickle"]);
    npy_fails(ok("[('a', '<f4')]", "False", "(2, 1)"), &["a string"]);
    npy_fails(ok("'<c8'", "False", "(1,)"), &["plain numbers"]);
    npy_fails(ok("'=f4'", "False", "(2,)"), &["byte order"]);
    npy_fails(ok("'é4'", "False", "(2,)"), &["plain numbers"]);
    npy_fails(ok("'<f4'", "Maybe", "(2,)"), &["False"]);
    npy_fails(ok("'<f4'", "False", "(2, -1)"), &["a size"]);
    npy_fails(ok("'<f4'", "False", "(2, 99999999999999999999999)"), &["a size"]);
    npy_fails(ok("'<f8'", "False", "()"), &["shape", "single number"]);
    npy_fails(ok("'<f4'", "False", "(2, 1), 'more': 1"), &["once each"]);
    npy_fails(ok("'<f4'", "False", "(4294967296, 4294967296, 4294967296)"), &["promised"]);
    npy_fails(npy_raw(1, "{'descr': '<f4'}", &[]), &["one dictionary"]);
    npy_fails(ok("'<f4'", "False", "(3,)"), &["12 bytes", "promised"]);
    npy_fails(ok("'<f4'", "False", "(1,)"), &["4 bytes", "more bytes"]);
    let empty = "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999, 99999999999)}";
    npy_fails(npy_raw(1, empty, &[]), &["at least one row"]);
    npy_fails(npy_bytes(ElementType::F32, &[2, 1], &f32s(&[1.0, f32::INFINITY])), &["row 1", "inf"]);
}

#[test]
fn npy_pairs_by_name() {
    let x = npy_bytes(ElementType::F32, &[2, 1], &f32s(&[1.0, 2.0]));
    let options = LoadOptions::default();
    for (x_name, y_name) in [
        ("x.npy", "y.npy"),
        ("X.npy", "y.npy"),
        ("x_train.npy", "y_train.npy"),
        ("digits_x.npy", "digits_y.npy"),
        ("train_images.npy", "train_labels.npy"),
        ("cars.npy", "cars_labels.npy"),
    ] {
        let folder = folder(&[
            (x_name, x.clone()),
            (y_name, u8s(&[1, 0])),
            ("x_test.npy", x.clone()),
            ("y_test.npy", u8s(&[0, 1])),
        ]);
        let split = load(folder.path().join(x_name), &options).unwrap();
        assert_eq!(split.train.labels.as_deref(), Some([1, 0].as_slice()), "{x_name}");
        assert_eq!(split.test.is_some(), x_name == "x_train.npy");
    }
    let folder = folder(&[("x.npy", x.clone())]);
    fails(folder.path().join("x.npy"), &options, &["y.npy", "no such file"]);
    fails(folder.path(), &options, &["y_train", "found x", "--keys"]);
    let options = LoadOptions { require_labels: false, ..options };
    assert!(load(folder.path().join("x.npy"), &options).unwrap().train.labels.is_none());
}

#[test]
fn npy_written_reads_back() {
    let folder =
        folder(&[("y.npy", npy_bytes(ElementType::I64, &[2], &[0_i64, -1].map(i64::to_le_bytes).concat()))]);
    let path = folder.path().join("x.npy");
    npy::write_f32(&path, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, -6.5]).unwrap();
    let options = LoadOptions { classes: Some(2), ..Default::default() };
    let set = load(&path, &options).unwrap().train;
    assert_eq!(values(&set), [1.0, 2.0, 3.0, 4.0, 5.0, -6.5]);
    assert_eq!(set.labels.as_deref(), Some([0, UNLABELLED].as_slice()));
    for n in 0..12 {
        assert_eq!(npy::header(ElementType::F32, &vec![12_345; n]).len() % 64, 0);
    }
    let error = npy::write_f32(folder.path().join("no/where.npy"), &[1], &[0.0]).unwrap_err();
    assert_eq!(error.exit_code(), 4);
}

fn keras() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("x_train.npy", npy_bytes(ElementType::U8, &[2, 2, 2], &[0, 1, 2, 3, 4, 5, 6, 7])),
        ("y_train.npy", u8s(&[1, 0])),
        ("x_test.npy", npy_bytes(ElementType::U8, &[1, 2, 2], &[9; 4])),
        ("y_test.npy", u8s(&[1])),
    ]
}

#[test]
fn npz_as_keras_and_others_write_it() {
    for method in [Stored, Deflated] {
        let folder = folder(&[("mnist.npz", zip_of(&keras(), method))]);
        let split = load(folder.path().join("mnist.npz"), &LoadOptions::default()).unwrap();
        assert_eq!((split.train.rows(), split.train.shape.as_slice()), (2, [2, 2].as_slice()));
        assert_eq!(values(split.test.as_ref().unwrap()), [9.0; 4]);
        assert_eq!(split.train.source.len(), 1);
        assert!(split.validation.is_none());
    }
    let renamed = |names: [&'static str; 4]| {
        let files: Vec<_> = names.into_iter().zip(keras()).map(|(name, (_, bytes))| (name, bytes)).collect();
        folder(&[("a.npz", zip_of(&files, Deflated))])
    };
    let medical = renamed(["train_images.npy", "train_labels.npy", "val_images.npy", "val_labels.npy"]);
    let split = load(medical.path().join("a.npz"), &LoadOptions::default()).unwrap();
    assert!(split.validation.is_some() && split.test.is_none());
    let own = renamed(["a.npy", "b.npy", "c.npy", "d.npy"]);
    fails(own.path().join("a.npz"), &LoadOptions::default(), &["x_train", "a, b, c, d", "--keys"]);
    let options = LoadOptions { keys: "a,b,c,d".parse().unwrap(), ..Default::default() };
    assert!(load(own.path().join("a.npz"), &options).unwrap().test.is_some());
    let options = LoadOptions { keys: "a,e".parse().unwrap(), ..Default::default() };
    fails(own.path().join("a.npz"), &options, &["one named e"]);
    assert_eq!("a,b,c".parse::<Keys>().unwrap_err().exit_code(), 2);
}

#[test]
fn npz_malformed() {
    let options = LoadOptions::default();
    let whole = zip_of(&keras(), Deflated);
    for bytes in
        [vec![], b"PK".to_vec(), whole[..whole.len() / 2].to_vec(), whole[..whole.len() - 1].to_vec()]
    {
        let folder = folder(&[("a.npz", bytes)]);
        fails(folder.path().join("a.npz"), &options, &["a.npz"]);
    }
    let with = |x: Vec<u8>| {
        let mut files = keras();
        files[0].1 = x;
        folder(&[("a.npz", zip_of(&files, Deflated))])
    };
    fails(with(b"no".to_vec()).path().join("a.npz"), &options, &["magic"]);
    let forged = npy_bytes(ElementType::U8, &[2, 1 << 40], &[0; 64]);
    fails(with(forged).path().join("a.npz"), &options, &["x_train.npy: header", "promised"]);
    let long = npy_bytes(ElementType::U8, &[2, 2], &[0; 5]);
    fails(with(long).path().join("a.npz"), &options, &["x_train.npy: values", "more bytes"]);
    let mut files = keras();
    files[1].1 = u8s(&[0, 1, 0]);
    let folder = folder(&[("a.npz", zip_of(&files, Stored))]);
    fails(folder.path().join("a.npz"), &options, &["y_train.npy: labels", "2 labels", "found 3"]);
}

#[test]
fn safetensors_rows() {
    let y = || ("y", Dtype::I64, vec![2], [0_i64, 1].map(i64::to_le_bytes).concat());
    for (dtype, bytes) in [
        (Dtype::F32, f32s(&[3.0, 100.0])),
        (Dtype::F16, [3.0, 100.0].map(|v| f16::from_f32(v).to_le_bytes()).concat()),
        (Dtype::BF16, [3.0, 100.0].map(|v| bf16::from_f32(v).to_le_bytes()).concat()),
        (Dtype::F64, [3.0_f64, 100.0].map(f64::to_le_bytes).concat()),
        (Dtype::U8, vec![3, 100]),
    ] {
        let file = safetensors_of(&[("x", dtype, vec![2, 1], bytes), y()]);
        let folder = folder(&[("a.safetensors", file.clone())]);
        let path = folder.path().join("a.safetensors");
        assert_eq!(values(&load(&path, &LoadOptions::default()).unwrap().train), [3.0, 100.0]);
        std::fs::write(&path, &file[..file.len() - 1]).unwrap();
        fails(&path, &LoadOptions::default(), &["safetensors"]);
    }
    let folder =
        folder(&[("a.safetensors", safetensors_of(&[("x", Dtype::C64, vec![2], vec![0; 16]), y()]))]);
    fails(folder.path().join("a.safetensors"), &LoadOptions::default(), &["tensor `x`", "C64"]);
}

fn csv(text: &str, options: &LoadOptions) -> Dataset {
    let folder = folder(&[("a.csv", text.as_bytes().to_vec())]);
    load(folder.path().join("a.csv"), options).unwrap().train
}

#[test]
fn csv_headers_and_label_columns() {
    let auto = LoadOptions::default();
    let labels = |set: &Dataset| set.labels.clone().unwrap();
    let iris = csv("sepal,petal,species\n5.1,3.5,setosa\n4.9,3.0,virginica\n1,2,setosa\n", &auto);
    assert_eq!((iris.rows(), iris.features(), labels(&iris)), (3, 2, vec![0, 1, 0]));
    assert_eq!(iris.class_names.as_deref(), Some(["setosa".to_owned(), "virginica".to_owned()].as_slice()));
    let kaggle = csv("label,pixel0,pixel1\n1,0,255\n0,3,4\n", &auto);
    assert_eq!((labels(&kaggle), values(&kaggle)), (vec![1, 0], vec![0.0, 255.0, 3.0, 4.0]));
    let bare = csv("5.1,3.5,1\n4.9,3.0,0\n", &auto);
    assert_eq!((bare.rows(), labels(&bare), bare.class_names), (2, vec![1, 0], None));
    // Text labels and no header: the first line is a row.
    assert_eq!(csv("1,2,b\n3,4,a\n", &auto).labels, Some(vec![1, 0]));
    let by = |column: &str| LoadOptions { label_column: column.into(), ..Default::default() };
    assert_eq!(csv("a,b\n1,0.5\n0,2.5\n", &by("a")).labels, Some(vec![1, 0]));
    assert_eq!(csv("1,0.5\n0,2.5\n", &by("0")).labels, Some(vec![1, 0]));
    assert_eq!(csv("7,1,0.5\n7,0,2.5\n", &by("-2")).labels, Some(vec![1, 0]));
    let told = LoadOptions { header: Some(true), ..Default::default() };
    assert_eq!(csv("0,1\n1,1\n2,0\n", &told).rows(), 2);
    let none = LoadOptions { label_column: LabelColumn::None, require_labels: false, ..Default::default() };
    assert_eq!(csv("0,1\n1,1\n", &none).features(), 2);
}

#[test]
fn csv_dialects() {
    let auto = LoadOptions::default();
    let want = [1.0, 2.0, 3.0, 4.0];
    for text in [
        "\u{feff}a;b;c\n1;2;0\n3;4;1\n",
        "a\tb\tc\r\n1\t2\t0\r\n3\t4\t1\r\n",
        "\"a\", \"b\", \"c\"\n1.0, 2, 0\n 3e0 ,\"4\", 1.0",
    ] {
        let set = csv(text, &auto);
        assert_eq!((values(&set).as_slice(), set.labels), (want.as_slice(), Some(vec![0, 1])), "{text}");
    }
    let folder = folder(&[("a.csv.gz", gz(b"1,0\n2,1\n"))]);
    assert_eq!(load(folder.path().join("a.csv.gz"), &auto).unwrap().train.rows(), 2);
    assert_eq!(csv("1,0\n2,1\n3,\n4,-1\n", &auto).labels, Some(vec![0, 1, UNLABELLED, UNLABELLED]));
}

#[test]
fn csv_folder_shares_class_names() {
    let file = |text: &str| text.as_bytes().to_vec();
    let names = [("train.csv", file("1,b\n2,a\n3,c\n")), ("test.csv", file("1,c\n"))];
    let split = load(folder(&names).path(), &LoadOptions::default()).unwrap();
    assert_eq!(split.test.unwrap().labels, Some(vec![2]));
    let names = [("train.csv", file("1,b\n2,a\n")), ("test.csv", file("1,a\n2,d\n"))];
    fails(folder(&names).path(), &LoadOptions::default(), &["test.csv", "line 2", "`a`, `b`", "`d`"]);
}

#[test]
fn csv_malformed() {
    let check = |text: &str, options: &LoadOptions, wanted: &[&str]| {
        let folder = folder(&[("a.csv", text.as_bytes().to_vec())]);
        fails(folder.path().join("a.csv"), options, wanted);
    };
    let auto = LoadOptions::default();
    check("", &auto, &["at least one row"]);
    check("a,b\n", &auto, &["at least one row"]);
    check("a,b,c\n1,2,0\n1,x,1\n", &auto, &["line 3, column 1 (`b`)", "`x`"]);
    check("1,2,0\n1,,1\n", &auto, &["line 2, column 1", "``"]);
    for missing in ["", "?", "NA", "nan"] {
        check(&format!("1,{missing},0\n1,2,1\n"), &auto, &["line 1, column 1"]);
    }
    check("1,2,0\n1,inf,1\n", &auto, &["line 2, column 1", "finite"]);
    check("1,2,0\n1,2\n", &auto, &["line 2", "3 fields", "found 2"]);
    check("1\n2\n", &auto, &["at least one beside the label"]);
    check("1,\n2,-1\n", &auto, &["at least one label"]);
    check(
        "a,1\nb,1\n",
        &LoadOptions {
            label_column: "0".into(),
            header: Some(false),
            classes: Some(1),
            ..Default::default()
        },
        &["0..1"],
    );
    check("1,0\n2,0\n", &auto, &["at least two classes"]);
    check("1,0\n2,70000\n", &auto, &["label of row 1", "65536"]);
    let by = |column: &str| LoadOptions { label_column: column.into(), ..Default::default() };
    check("a,b\n1,0\n", &by("c"), &["column `c`", "`a`, `b`"]);
    check("1,0\n", &by("2"), &["one of 2 columns"]);
    check("1,0\n", &by("-3"), &["one of 2 columns"]);
}
