//! What a bad input says, and what it leaves behind: nothing.

use std::fs;

use crate::bench::{Bench, fails};

#[test]
fn bad_options_are_refused_before_anything_is_written() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let (data, out) = (bench.text("data"), bench.text("gone"));
    let distil = |more: &[&str], code, words: &[&str]| {
        let mut args = vec!["distill", "--data", &data, "--layers", "7,5,3", "--out", &out];
        args.extend(more);
        fails(&args, code, words);
        assert!(!bench.path("gone").exists(), "nothing half-written");
    };
    let t = teacher.as_str();
    distil(&[], 2, &["--teacher"]);
    distil(&["--teacher", t, "--drop-classes", "3"], 2, &["--drop-classes", "classes below 3"]);
    distil(&["--teacher", t, "--drop-classes", "0,1,2"], 2, &["--drop-classes", "all of them"]);
    distil(&["--teacher", t, "--labels-per-class", "51"], 2, &["labels per class", "at most 50"]);
    distil(&["--teacher", t, "--label-fraction", "1.5"], 2, &["label fraction"]);
    distil(&["--teacher", t, "--scale", "0"], 2, &["--scale"]);
    distil(&["--teacher", t, "--keys", "x"], 2, &["--keys"]);
    distil(&["--teacher", t, "--keys", "a,b"], 4, &["one named a", "x_test, x_train, y_test, y_train"]);
    distil(&["--teacher", t, "--transfer", "/nowhere.npy"], 4, &["/nowhere.npy"]);
    distil(&["--teacher", t, "--device-memory", "lots"], 2, &["--device-memory"]);
    distil(&["--teacher-logits", &bench.text("none")], 4, &["none"]);
    distil(&["--teacher-logits", &data], 4, &["logits-00000-of-00001"]);
    fs::write(bench.path("t.pt"), b"PK\x03\x04zip").expect("written");
    distil(&["--teacher", &bench.text("t.pt")], 4, &["torch.load", "save_file"]);
    bench.npy("narrow.npy", "<f4", "(2, 3)", &[0; 24]);
    distil(&["--teacher", t, "--transfer", &bench.text("narrow.npy")], 4, &["rows of 7", "rows of 3"]);

    let onnx = bench.text("m.onnx");
    fails(&["export", "--model", t, "--onnx", &onnx, "--opset", "9"], 2, &["--opset", "13 to 21"]);
    fails(&["export", "--model", &data, "--onnx", &onnx], 4, &["model.safetensors.index.json"]);
    fails(&["predict", "--model", t, "--data", &data, "--out", &bench.text("m.txt")], 2, &[".npy or .csv"]);
    fails(&["logits", "--teacher", t, "--data", &data, "--out", &out, "--shard", "3/3"], 2, &["--shard"]);
    fails(
        &["logits", "--teacher", t, "--data", &data, "--out", &out, "--top-k", "3", "--temperature", "1"],
        2,
        &["--top-k", "1 to 2"],
    );
    assert!(!bench.path("m.onnx").exists() && !bench.path("gone").exists());
}
