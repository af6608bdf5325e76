//! What the tests share: a data set of three easy classes, and the binary to run over it.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use assert_cmd::Command;

pub(crate) fn binary() -> Command {
    let mut command = Command::cargo_bin("limbeck").expect("the binary is built");
    // A test that runs inside a job array is not one of its tasks.
    for name in ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"] {
        command.env_remove(name);
    }
    command
}

fn checked(args: &[&str], out: Output) -> Output {
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    out
}

pub(crate) fn json(args: &[&str]) -> serde_json::Value {
    let out = checked(args, binary().args(args).output().expect("it runs"));
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("one JSON object")
}

/// A failing command: its exit code and words of its one `error:` line and its hint.
pub(crate) fn fails(args: &[&str], code: i32, words: &[&str]) {
    let out = checked(args, binary().args(args).output().expect("it runs"));
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: `{word}` is not in: {stderr}");
    }
}

pub(crate) const ROWS: usize = 150;
pub(crate) const FEATURES: usize = 7;

/// 150 training and 40 test rows of 7 floats in 3 classes, as .npy, and a teacher trained on them.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().expect("a temporary folder") };
        fs::create_dir(bench.path("data")).expect("created");
        for (part, rows, salt) in [("train", ROWS, 0), ("test", 40, 5)] {
            bench.rows(&format!("data/x_{part}.npy"), rows, salt);
            let labels: Vec<u8> = (0..rows).map(|i| (i % 3) as u8).collect();
            bench.npy(&format!("data/y_{part}.npy"), "|u1", &format!("({rows},)"), &labels);
        }
        bench
    }

    pub(crate) fn rows(&self, name: &str, rows: usize, salt: u32) {
        let value = |i: usize, j: usize| {
            let noise = (i as u32 * 37 + j as u32 * 11 + salt).wrapping_mul(2_654_435_761) >> 24;
            noise as f32 / 255.0 + if i % 3 == j % 3 { 1.5 } else { 0.0 }
        };
        let values = (0..rows).flat_map(|i| (0..FEATURES).map(move |j| value(i, j)));
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        self.npy(name, "<f4", &format!("({rows}, {FEATURES})"), &bytes);
    }

    pub(crate) fn npy(&self, name: &str, descr: &str, shape: &str, values: &[u8]) {
        let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend(values);
        fs::write(self.path(name), bytes).expect("written");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// A teacher of its own seed; its file.
    pub(crate) fn teacher(&self, name: &str, more: &[&str]) -> String {
        let (data, out) = (self.text("data"), self.text(name));
        let mut args = vec![
            "train",
            "--data",
            &data,
            "--layers",
            "7,13,3",
            "--batch-size",
            "16",
            "--json",
            "--out",
            &out,
        ];
        if !more.contains(&"--epochs") {
            args.extend(["--epochs", "8"]);
        }
        args.extend(more);
        json(&args);
        self.text(&format!("{name}/model.safetensors"))
    }

    /// Distils a small student in few steps and returns what the run prints.
    pub(crate) fn distil(&self, out: &str, more: &[&str]) -> serde_json::Value {
        let (data, out) = (self.text("data"), self.text(out));
        let mut args = vec!["distill", "--data", &data, "--layers", "7,5,3", "--batch-size", "16"];
        args.extend(["--force", "--json", "--out", &out]);
        if !more.contains(&"--steps") {
            args.extend(["--steps", "25"]);
        }
        args.extend(more);
        json(&args)
    }

    pub(crate) fn logits(&self, teacher: &str, out: &str, more: &[&str]) -> serde_json::Value {
        let (data, out) = (self.text("data"), self.text(out));
        let mut args = vec!["logits", "--data", &data, "--teacher", teacher, "--batch-size", "16"];
        args.extend(["--json", "--out", &out]);
        args.extend(more);
        json(&args)
    }

    pub(crate) fn files(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).expect("a folder");
        let mut names: Vec<_> =
            entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }
}

pub(crate) fn hash(result: &serde_json::Value) -> String {
    result["weights_sha256"].as_str().expect("a hash").to_owned()
}
