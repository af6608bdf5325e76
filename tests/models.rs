//! Model files from outside: PyTorch's and Keras's names, every type, shards, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use limbeck::data::Normalisation;
use limbeck::kernels::matmul::Activation;
use limbeck::mlp::weights::{Initializer, Model, ReadOptions, SaveOptions, StoredType, Weights};
use safetensors::tensor::{Dtype, TensorView};

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn serialize(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor of this shape"))
    });
    safetensors::serialize(views, None).expect("a file")
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).expect("written");
        self.path(name)
    }
}

fn load(path: &Path) -> Model {
    Model::load(path, &ReadOptions::default()).expect("a model")
}

fn refused(path: &Path, options: &ReadOptions, words: &[&str]) {
    let error = Model::load(path, options).expect_err("refused");
    assert_eq!(error.exit_code(), 4, "{error}");
    let text = format!("{error} | {}", error.hint().unwrap_or_default());
    // The table's columns are as wide as they need to be.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

/// 3-2-2 with weights 0, 1, 2 … and biases 0.5, 1.5.
fn pytorch(names: [&'static str; 4]) -> Vec<Tensor> {
    let count = |n: usize| f32s((0..n).map(|i| i as f32));
    vec![
        (names[0], Dtype::F32, vec![2, 3], count(6)),
        (names[1], Dtype::F32, vec![2], f32s([0.5, 1.5])),
        (names[2], Dtype::F32, vec![2, 2], count(4)),
        (names[3], Dtype::F32, vec![2], f32s([0.5, 1.5])),
    ]
}

#[test]
fn pytorch_names_of_any_prefix() {
    let folder = Folder::new();
    for names in [
        ["0.weight", "0.bias", "2.weight", "2.bias"],
        ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"],
        [
            "_orig_mod.module.net.2.weight",
            "_orig_mod.module.net.2.bias",
            "_orig_mod.module.net.10.weight",
            "_orig_mod.module.net.10.bias",
        ],
        ["model.a.weight", "model.a.bias", "model.b.weight", "model.b.bias"],
    ] {
        let model = load(&folder.write("m.safetensors", &serialize(&pytorch(names))));
        assert_eq!(model.weights.sizes(), [3, 2, 2], "{names:?}");
        assert_eq!(model.weights.layers[0].weight, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(model.weights.layers[1].bias, [0.5, 1.5]);
        assert_eq!((model.weights.activation, model.activation_known), (Activation::Relu, false));
        assert_eq!(model.normalisation, None);
    }
    let options = ReadOptions { activation: Some(Activation::Tanh), ..Default::default() };
    let model = Model::load(&folder.path("m.safetensors"), &options).expect("a model");
    assert_eq!((model.weights.activation, model.activation_known), (Activation::Tanh, true));
    // Without biases: zeros.
    let mut bare = pytorch(["0.weight", "0.bias", "1.weight", "1.bias"]);
    bare.retain(|t| t.0.ends_with("weight"));
    assert_eq!(load(&folder.write("m.safetensors", &serialize(&bare))).weights.layers[0].bias, [0.0, 0.0]);
}

#[test]
fn keras_kernels_are_turned() {
    let folder = Folder::new();
    let kernels = |names: [&'static str; 4]| {
        let mut t = pytorch(names);
        // The same network: [in, out].
        t[0].2 = vec![3, 2];
        t[0].3 = f32s([0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        t[2].3 = f32s([0.0, 2.0, 1.0, 3.0]);
        serialize(&t)
    };
    for names in [
        ["dense/kernel", "dense/bias", "dense_1/kernel:0", "dense_1/bias:0"],
        ["layers/dense/vars/0", "layers/dense/vars/1", "layers/dense_1/vars/0", "layers/dense_1/vars/1"],
    ] {
        let model = load(&folder.write("m.safetensors", &kernels(names)));
        assert_eq!(model.weights.layers[0].weight, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(model.weights.layers[1].weight, [0.0, 1.0, 2.0, 3.0]);
    }
    // Without a name that says so, only on request; and the refusal says how.
    let path = folder.write("m.safetensors", &kernels(["0.weight", "0.bias", "1.weight", "1.bias"]));
    refused(&path, &ReadOptions::default(), &["tensor `0.bias`", "--keras-kernels"]);
    let options = ReadOptions { keras_kernels: true, ..Default::default() };
    let turned = Model::load(&path, &options).expect("a model");
    assert_eq!(turned.weights.layers[0].weight, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn every_type_and_its_limits() {
    let folder = Folder::new();
    let encode = |dtype, values: [f64; 4]| -> Vec<u8> {
        match dtype {
            Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f64(*v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|v| half::bf16::from_f64(*v).to_le_bytes()).collect(),
            Dtype::F64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
        }
    };
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        let write = |values| {
            let bytes = serialize(&[("0.weight", dtype, vec![2, 2], encode(dtype, values))]);
            folder.write("m.safetensors", &bytes)
        };
        let model = load(&write([0.5, -1.25, 3.0, 0.0]));
        assert_eq!(model.weights.layers[0].weight, [0.5, -1.25, 3.0, 0.0], "{dtype:?}");
        refused(
            &write([0.5, 1.0, f64::NAN, 0.0]),
            &ReadOptions::default(),
            &["`0.weight`", "NaN at element 2"],
        );
    }
    let wide = serialize(&[("0.weight", Dtype::F64, vec![2, 2], encode(Dtype::F64, [1.0, 1e300, 0.0, 0.0]))]);
    refused(&folder.write("m.safetensors", &wide), &ReadOptions::default(), &["inf at element 1"]);
    let ints = serialize(&[("0.weight", Dtype::I32, vec![2, 2], vec![0; 16])]);
    refused(&folder.write("m.safetensors", &ints), &ReadOptions::default(), &["F16", "I32"]);
}

#[test]
fn mismatches_are_shown_layer_by_layer() {
    let folder = Folder::new();
    let path =
        folder.write("m.safetensors", &serialize(&pytorch(["a.weight", "a.bias", "b.weight", "b.bias"])));
    let options = ReadOptions { sizes: Some(vec![3, 4, 2]), ..Default::default() };
    refused(&path, &options, &["3-4-2", "a.weight [2, 3] [4, 3] <-", "b.weight [2, 2] [2, 4] <-"]);
    let options = ReadOptions { sizes: Some(vec![3, 2, 2, 2]), ..Default::default() };
    refused(&path, &options, &["- - [2, 2] <-"]);
    // Layers that do not chain: the order of names is not the order of the network.
    let path =
        folder.write("m.safetensors", &serialize(&pytorch(["z.weight", "z.bias", "b.weight", "b.bias"])));
    refused(
        &path,
        &ReadOptions::default(),
        &["b.weight [2, 2]", "z.weight [2, 3] [2, 2] <-", "natural order"],
    );
    let norm = [("bn.running_mean", Dtype::F32, vec![2], f32s([0.0, 1.0]))];
    let path = folder.write("m.safetensors", &serialize(&norm));
    refused(&path, &ReadOptions::default(), &["bn.running_mean", "plain MLPs"]);
    let conv = [("c.weight", Dtype::F32, vec![1, 1, 2, 2], f32s([0.0; 4]))];
    let path = folder.write("m.safetensors", &serialize(&conv));
    refused(&path, &ReadOptions::default(), &["c.weight", "shape [1, 1, 2, 2]"]);
}

#[test]
fn other_formats_get_two_lines_of_python() {
    let folder = Folder::new();
    for (name, bytes, words) in [
        ("m.pt", b"PK\x03\x04rest-of-a-zip".as_slice(), ["torch.load", "save_file"]),
        ("m.bin", b"\x80\x02}q\x00(X\x05\x00\x00\x00", ["torch.load", "an old PyTorch checkpoint"]),
        ("teacher", b"PK\x03\x04rest-of-a-zip", ["torch.load", "zip archive"]),
        ("m.keras", b"PK\x03\x04rest-of-a-zip", ["keras.models.load_model", "w.path"]),
        ("m.h5", b"\x89HDF\r\n\x1a\n", ["keras.models.load_model", "HDF5"]),
        ("m.weights.h5", b"\x89HDF\r\n\x1a\n", ["h5py.File", "visititems"]),
        ("m.pkl", b"\x80\x04\x95rest", ["pickle.load", "a pickle"]),
        ("m.npz", b"PK\x03\x04rest-of-a-zip", ["np.load", "NumPy"]),
        ("m.safetensors", b"", ["truncated", "whole safetensors"]),
        ("m.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", ["truncated", "whole safetensors"]),
    ] {
        refused(&folder.write(name, bytes), &ReadOptions::default(), &words);
    }
}

#[test]
fn shards_with_an_index_stay_in_their_folder() {
    let folder = Folder::new();
    let all = pytorch(["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]);
    folder.write("model-00001-of-00002.safetensors", &serialize(&all[..2]));
    folder.write("model-00002-of-00002.safetensors", &serialize(&all[2..]));
    let index = |second: &str| {
        let map = serde_json::json!({ "weight_map": {
            "fc1.weight": "model-00001-of-00002.safetensors", "fc1.bias": "model-00001-of-00002.safetensors",
            "fc2.weight": second, "fc2.bias": second,
        }});
        folder.write("model.safetensors.index.json", map.to_string().as_bytes())
    };
    let path = index("model-00002-of-00002.safetensors");
    assert_eq!(load(&path).weights.sizes(), [3, 2, 2]);
    assert_eq!(load(folder.0.path()).weights, load(&path).weights);
    let options = ReadOptions::default();
    refused(&index("model-00001-of-00002.safetensors"), &options, &["tensor `fc2.", "as the index says"]);
    for outside in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\\b", ""] {
        refused(&index(outside), &options, &["own folder"]);
    }
    refused(&index("gone.safetensors"), &options, &["gone.safetensors"]);
    refused(&folder.write("model.safetensors.index.json", b"{}"), &options, &["weight_map"]);
}

#[test]
fn what_is_written_is_read_again() {
    let folder = Folder::new();
    let weights = Weights::init(&[5, 7, 3], Activation::Gelu, Initializer::He, 1).expect("weights");
    let normalisation = Normalisation {
        scale: 1.0 / 255.0,
        mean: Some(vec![0.1; 5]),
        inv_std: Some(vec![1.7, 2.0, 0.3, 1e-7, 3e8]),
    };
    let class_names = Some(["a", "b, or \"c\"", "é"].map(str::to_owned).to_vec());
    let model = Model { weights, normalisation: Some(normalisation), class_names, activation_known: true };
    for keras in [false, true] {
        for (dtype, precision) in [(StoredType::F32, 0.0), (StoredType::F16, 1e-3), (StoredType::Bf16, 8e-3)]
        {
            let path = folder.path("m.safetensors");
            model.save(&path, SaveOptions { dtype, keras }).expect("saved");
            let read = load(&path);
            assert_eq!(
                (&read.normalisation, &read.class_names, read.weights.activation),
                (&model.normalisation, &model.class_names, Activation::Gelu)
            );
            for (a, b) in read.weights.layers.iter().zip(&model.weights.layers) {
                for (x, y) in a.weight.iter().zip(&b.weight) {
                    assert!((x - y).abs() <= precision * y.abs(), "{dtype:?} {keras}: {x} for {y}");
                }
            }
            // Into the same place: the old file is replaced whole.
            assert_eq!(fs::read_dir(folder.0.path()).expect("a folder").count(), 1);
        }
    }
    let mut large = model.clone();
    large.weights.layers[1].bias[2] = 1e5;
    let path = folder.path("large.safetensors");
    let options = SaveOptions { dtype: StoredType::F16, keras: false };
    let error = large.save(&path, options).expect_err("too large").to_string();
    assert!(error.contains("`layers.1.bias`") && error.contains("element 2"), "{error}");
    assert!(!path.exists());
}
