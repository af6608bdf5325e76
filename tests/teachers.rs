//! Teachers from outside: logits on disk, ensembles, few labels, transfer sets, streamed rows; and what a
//! bad input leaves behind.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use assert_cmd::Command;

fn binary() -> Command {
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

fn json(args: &[&str]) -> serde_json::Value {
    let out = checked(args, binary().args(args).output().expect("it runs"));
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("one JSON object")
}

/// A failing command: its exit code and words of its one `error:` line and its hint.
fn fails(args: &[&str], code: i32, words: &[&str]) {
    let out = checked(args, binary().args(args).output().expect("it runs"));
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: `{word}` is not in: {stderr}");
    }
}

const ROWS: usize = 150;
const FEATURES: usize = 7;

/// 150 training and 40 test rows of 7 floats in 3 classes, as .npy, and a teacher trained on them.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().expect("a temporary folder") };
        fs::create_dir(bench.path("data")).expect("created");
        for (part, rows, salt) in [("train", ROWS, 0), ("test", 40, 5)] {
            bench.rows(&format!("data/x_{part}.npy"), rows, salt);
            let labels: Vec<u8> = (0..rows).map(|i| (i % 3) as u8).collect();
            bench.npy(&format!("data/y_{part}.npy"), "|u1", &format!("({rows},)"), &labels);
        }
        bench
    }

    fn rows(&self, name: &str, rows: usize, salt: u32) {
        let value = |i: usize, j: usize| {
            let noise = (i as u32 * 37 + j as u32 * 11 + salt).wrapping_mul(2_654_435_761) >> 24;
            noise as f32 / 255.0 + if i % 3 == j % 3 { 1.5 } else { 0.0 }
        };
        let values = (0..rows).flat_map(|i| (0..FEATURES).map(move |j| value(i, j)));
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        self.npy(name, "<f4", &format!("({rows}, {FEATURES})"), &bytes);
    }

    fn npy(&self, name: &str, descr: &str, shape: &str, values: &[u8]) {
        let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend(values);
        fs::write(self.path(name), bytes).expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// A teacher of its own seed; its file.
    fn teacher(&self, name: &str, more: &[&str]) -> String {
        let (data, out) = (self.text("data"), self.text(name));
        let mut args = vec![
            "train",
            "--data",
            &data,
            "--layers",
            "7,13,3",
            "--epochs",
            "8",
            "--batch-size",
            "16",
            "--json",
            "--out",
            &out,
        ];
        args.extend(more);
        json(&args);
        self.text(&format!("{name}/model.safetensors"))
    }

    /// Distils a small student in few steps and returns what the run prints.
    fn distil(&self, out: &str, more: &[&str]) -> serde_json::Value {
        let (data, out) = (self.text("data"), self.text(out));
        let mut args = vec!["distill", "--data", &data, "--layers", "7,5,3", "--batch-size", "16"];
        args.extend(["--force", "--json", "--out", &out]);
        if !more.contains(&"--steps") {
            args.extend(["--steps", "25"]);
        }
        args.extend(more);
        json(&args)
    }

    fn logits(&self, teacher: &str, out: &str, more: &[&str]) -> serde_json::Value {
        let (data, out) = (self.text("data"), self.text(out));
        let mut args = vec!["logits", "--data", &data, "--teacher", teacher, "--batch-size", "16"];
        args.extend(["--json", "--out", &out]);
        args.extend(more);
        json(&args)
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).expect("a folder");
        let mut names: Vec<_> =
            entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }
}

fn hash(result: &serde_json::Value) -> String {
    result["weights_sha256"].as_str().expect("a hash").to_owned()
}

/// The heart of it: what is on disk teaches exactly what the live teacher teaches, whatever the sharding,
/// the shuffling and the rows held back.
#[test]
fn cached_logits_give_the_bits_of_the_live_teacher() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &["--standardise"]);
    bench.logits(&teacher, "one", &[]);
    let report = bench.logits(&teacher, "many", &["--shards", "7"]);
    assert_eq!((report["written"].as_u64(), bench.files("many").len()), (Some(7), 7));
    for more in [vec![], vec!["--validation", "0.2"], vec!["--drop-classes", "1", "--labels-per-class", "5"]]
    {
        let run = |source: [&str; 2]| {
            let mut args = source.to_vec();
            args.extend(&more);
            bench.distil("student", &args)
        };
        let live = run(["--teacher", &teacher]);
        for folder in ["one", "many"] {
            let cached = run(["--teacher-logits", &bench.text(folder)]);
            assert_eq!(hash(&live), hash(&cached), "{folder} {more:?}");
            let agreement = |r: &serde_json::Value| r["validation"]["agreement"].as_f64();
            assert_eq!(agreement(&live), agreement(&cached));
        }
    }
    // The comparison can fail: other logits, another student.
    let other = bench.teacher("other", &["--seed", "9"]);
    assert_ne!(
        hash(&bench.distil("student", &["--teacher", &teacher])),
        hash(&bench.distil("student", &["--teacher", &other]))
    );
}

#[test]
fn ensembles_are_the_same_live_and_cached_and_differ_by_rule() {
    let bench = Bench::new();
    let (a, b) = (bench.teacher("a", &["--standardise"]), bench.teacher("b", &["--seed", "3"]));
    bench.logits(&a, "la", &[]);
    bench.logits(&b, "lb", &["--shards", "2"]);
    let mut seen = vec![hash(&bench.distil("s", &["--teacher", &a]))];
    for rule in ["arithmetic", "geometric"] {
        let long = ["--ensemble", rule, "--steps", "150", "--lr", "0.01"];
        let live = bench.distil("s", &[&["--teacher", &a, "--teacher", &b], &long[..]].concat());
        let (la, lb) = (bench.text("la"), bench.text("lb"));
        let cached =
            bench.distil("s", &[&["--teacher-logits", &la, "--teacher-logits", &lb], &long[..]].concat());
        // One of each: networks come first, so the order of summation stays.
        let mixed = bench.distil("s", &[&["--teacher", &a, "--teacher-logits", &lb], &long[..]].concat());
        assert_eq!(hash(&live), hash(&cached), "{rule}");
        assert_eq!(hash(&live), hash(&mixed), "{rule}");
        let agreement = live["test"]["agreement"].as_f64().expect("an agreement");
        assert!(agreement > 0.8, "{rule}: the student follows the ensemble: {agreement}");
        assert!(cached["test"]["agreement"].is_null(), "no logits of test rows");
        seen.push(hash(&live));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "one teacher, and two rules of two");
}

#[test]
fn shards_are_skipped_replaced_and_refused() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let shard = |i: usize| bench.path(&format!("l/logits-{i:05}-of-00003.safetensors"));
    for i in [2, 0, 1] {
        let part = format!("{i}/3");
        bench.logits(&teacher, "l", &["--shard", &part]);
    }
    let original = fs::read(shard(1)).expect("a shard");
    let again = bench.logits(&teacher, "l", &["--shards", "3"]);
    assert_eq!((again["written"].as_u64(), again["skipped"].as_u64()), (Some(0), Some(3)));

    // Cut short, bits flipped, missing: refused as a teacher, written again by the same command.
    let (data, l, out) = (bench.text("data"), bench.text("l"), bench.text("student"));
    let distil = ["distill", "--data", &data, "--layers", "7,5,3", "--teacher-logits", &l, "--out", &out];
    let mut flipped = original.clone();
    *flipped.last_mut().expect("bytes") ^= 1;
    for (bytes, words) in [
        (Some(original[..original.len() - 5].to_vec()), ["00001-of-00003", "whole safetensors"]),
        (Some(flipped), ["payload_sha256", "damaged"]),
        (None, ["gap between shards", "begins at row 50"]),
    ] {
        match bytes {
            Some(bytes) => fs::write(shard(1), bytes).expect("written"),
            None => fs::remove_file(shard(1)).expect("removed"),
        }
        fails(&distil, 4, &words);
        assert!(!bench.path("student").exists(), "nothing half-written");
        let again = bench.logits(&teacher, "l", &["--shards", "3"]);
        assert_eq!((again["written"].as_u64(), again["skipped"].as_u64()), (Some(1), Some(2)));
        assert_eq!(fs::read(shard(1)).expect("a shard"), original, "the same bytes");
    }
    fs::remove_file(shard(2)).expect("removed");
    fails(&distil, 4, &["rows 0..150", "missing"]);
    bench.logits(&teacher, "l", &["--shards", "3"]);
    bench.logits(&teacher, "l", &["--shards", "2"]);
    fails(&distil, 4, &["shards that overlap"]);
    for i in 0..2 {
        fs::remove_file(bench.path(&format!("l/logits-{i:05}-of-00002.safetensors"))).expect("removed");
    }

    // Another teacher into the same folder; other data; another student.
    let other = bench.teacher("other", &["--seed", "9"]);
    let logits =
        ["logits", "--data", &data, "--batch-size", "16", "--out", &l, "--shards", "3", "--teacher", &other];
    fails(&logits, 4, &["teacher_sha256", "--force"]);
    let wide = ["distill", "--data", &data, "--layers", "7,5,4", "--teacher-logits", &l, "--out", &out];
    fails(&wide, 4, &["150 rows of 4 logits", "150 rows of 3 logits"]);
    let mut x = fs::read(bench.path("data/x_train.npy")).expect("rows");
    *x.last_mut().expect("bytes") ^= 1;
    fs::write(bench.path("data/x_train.npy"), x).expect("written");
    fails(&distil, 4, &["data_sha256", "logits of other data"]);
    assert!(!bench.path("student").exists(), "nothing half-written");
}

#[test]
fn a_job_array_shares_the_rows() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let (data, out) = (bench.text("data"), bench.text("l"));
    for id in ["1", "2"] {
        let mut task = binary();
        task.env("SLURM_ARRAY_TASK_ID", id)
            .env("SLURM_ARRAY_TASK_COUNT", "2")
            .env("SLURM_ARRAY_TASK_MIN", "1");
        let done = task
            .args(["logits", "--data", &data, "--teacher", &teacher, "--out", &out])
            .output()
            .expect("it runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    assert_eq!(bench.files("l"), ["logits-00000-of-00002.safetensors", "logits-00001-of-00002.safetensors"]);
    bench.distil("student", &["--teacher-logits", &out]);
}

#[test]
fn top_k_and_half_precision() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let report = bench.logits(&teacher, "k", &["--top-k", "2", "--temperature", "4"]);
    let number = |name: &str| report[name].as_f64().expect("a number");
    // One class is left out: its whole mass is known, and its divergence is none.
    assert!(number("top_k_bound").abs() < 1e-9 && number("top_k_divergence").abs() < 1e-9);
    let report = bench.logits(&teacher, "k1", &["--top-k", "1", "--temperature", "4"]);
    let (bound, divergence) = (report["top_k_bound"].as_f64(), report["top_k_divergence"].as_f64());
    assert!(divergence > Some(0.0) && divergence <= bound, "{divergence:?} {bound:?}");
    bench.distil("student", &["--teacher-logits", &bench.text("k"), "--temperature", "4"]);
    let (data, k, out) = (bench.text("data"), bench.text("k"), bench.text("gone"));
    let args = [
        "distill",
        "--data",
        &data,
        "--layers",
        "7,5,3",
        "--teacher-logits",
        &k,
        "--temperature",
        "2",
        "--out",
        &out,
    ];
    fails(&args, 4, &["top_k.temperature", "right at one temperature only"]);

    bench.logits(&teacher, "half", &["--dtype", "f16", "--shards", "2"]);
    bench.logits(&teacher, "full", &[]);
    let size = |folder: &str| -> u64 {
        bench
            .files(folder)
            .iter()
            .map(|f| fs::metadata(bench.path(folder).join(f)).expect("a file").len())
            .sum()
    };
    assert!(size("half") < size("full") + 1600, "two headers, half the numbers");
    let (half, full) = (bench.text("half"), bench.text("full"));
    let loss = |source: &str| bench.distil("student", &["--teacher-logits", source])["test"]["nll"].as_f64();
    let (a, b) = (loss(&half).expect("nll"), loss(&full).expect("nll"));
    assert!((a - b).abs() < 1e-2, "{a} {b}");
}

/// Any model may teach: a matrix in row order, whatever computed it.
#[test]
fn logits_of_someone_else() {
    let bench = Bench::new();
    let matrix = |rows: usize, value: f32| -> Vec<u8> {
        (0..rows * 3).flat_map(|i| if i % 3 == i / 3 % 3 { value } else { 0.0 }.to_le_bytes()).collect()
    };
    bench.npy("forest.npy", "<f4", &format!("({ROWS}, 3)"), &matrix(ROWS, 6.0));
    let forest = bench.text("forest.npy");
    let result = bench
        .distil("student", &["--teacher-logits", &forest, "--alpha", "0", "--steps", "200", "--lr", "0.01"]);
    assert_eq!(
        result["test"]["errors"].as_u64(),
        Some(0),
        "the classes are easy, and only logits teach: {result}"
    );

    let (data, out) = (bench.text("data"), bench.text("gone"));
    let refused = |code, words: &[&str]| {
        let args =
            ["distill", "--data", &data, "--layers", "7,5,3", "--teacher-logits", &forest, "--out", &out];
        fails(&args, code, words);
        assert!(!bench.path("gone").exists(), "nothing half-written");
    };
    bench.npy("forest.npy", "<f4", "(149, 3)", &matrix(149, 6.0));
    refused(4, &["150 rows of 3 logits", "149 rows"]);
    bench.npy("forest.npy", "<f4", "(150, 3)", &matrix(ROWS, f32::NAN));
    refused(4, &["row 0, feature 0", "NaN"]);
    bench.npy("forest.npy", "<f4", "(450,)", &matrix(ROWS, 1.0));
    refused(4, &["[rows, columns]", "[450]"]);
    fs::write(bench.path("forest.npy"), b"PK\x03\x04").expect("written");
    refused(4, &["forest.npy"]);
}

/// Rows that pass through a small window teach the same bits as rows that stay.
#[test]
fn streamed_rows_give_the_bits_of_resident_ones() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let resident = hash(&bench.distil("student", &["--teacher", &teacher]));
    // Two batches of 16 rows of 8 floats are 1024 bytes; 150 rows are 4800.
    for memory in ["1024", "2KiB", "4799"] {
        assert_eq!(
            resident,
            hash(&bench.distil("student", &["--teacher", &teacher, "--device-memory", memory])),
            "{memory}"
        );
    }
    let (data, out) = (bench.text("data"), bench.text("gone"));
    let args = [
        "train",
        "--data",
        &data,
        "--layers",
        "7,3",
        "--device-memory",
        "1023",
        "--batch-size",
        "16",
        "--out",
        &out,
    ];
    fails(&args, 2, &["--device-memory", "1024 bytes"]);
}

#[test]
fn few_labels_transfer_sets_and_stored_statistics() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &["--standardise"]);
    bench.rows("more.npy", 60, 77);
    let more = bench.text("more.npy");
    let plain = hash(&bench.distil("student", &["--teacher", &teacher]));
    let with =
        bench.distil("student", &["--teacher", &teacher, "--transfer", &more, "--label-fraction", "0.1"]);
    assert_ne!(plain, hash(&with));

    // Statistics go with the model: in other units, and other statistics, the same answers.
    let data = bench.text("data");
    let eval = |more: &[&str]| {
        let mut args = vec!["eval", "--data", &data, "--model", &teacher, "--json"];
        args.extend(more);
        json(&args)["evaluation"]["nll"].as_f64().expect("nll")
    };
    let nll = eval(&[]);
    assert!(nll < 0.9, "{nll}");
    assert!((eval(&["--scale", "3"]) - nll).abs() > 1e-3, "--scale wins over the model");

    let (npy, csv) = (bench.text("z.npy"), bench.text("p.csv"));
    for out in [&npy, &csv] {
        let args = ["predict", "--data", &data, "--model", &teacher, "--out", out];
        let done = binary().args(args).output().expect("it runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fails(&args, 2, &["--out", "--force"]);
    }
    let bytes = fs::read(&npy).expect("logits");
    assert_eq!(bytes.len(), 128 + 40 * 3 * 4);
    let logits: Vec<f32> =
        bytes[128..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let of_row = |row: &[f32], label: usize| {
        let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
        sum.ln() - f64::from(row[label])
    };
    let mean = logits.chunks_exact(3).enumerate().map(|(i, row)| of_row(row, i % 3)).sum::<f64>() / 40.0;
    assert!((mean - nll).abs() < 1e-5, "predict and eval disagree: {mean} {nll}");
    let text = fs::read_to_string(&csv).expect("probabilities");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines.len(), lines[0]), (41, "prediction,0,1,2"));
    let cells: Vec<f64> = lines[1].split(',').map(|c| c.parse().expect("a number")).collect();
    assert!((cells[1..].iter().sum::<f64>() - 1.0).abs() < 1e-6);
    let best = (1..4).max_by(|a, b| cells[*a].total_cmp(&cells[*b])).expect("a class") - 1;
    assert!((cells[0] - best as f64).abs() < 1e-9);
}

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

/// 12 GiB of rows that take no disk train in a small fraction of it: rows pass through a window, on the
/// host as on the device.
#[cfg(target_os = "linux")]
#[test]
fn twelve_gib_train_with_a_bounded_resident_set() {
    const FEATURES: usize = 1024;
    const ROWS: usize = 3 << 20;
    let bench = Bench::new();
    fs::create_dir(bench.path("big")).expect("created");
    bench.npy("big/x_train.npy", "<f4", &format!("({ROWS}, {FEATURES})"), &[]);
    let file = fs::OpenOptions::new().write(true).open(bench.path("big/x_train.npy")).expect("opened");
    let header = file.metadata().expect("a file").len();
    file.set_len(header + (ROWS * FEATURES * 4) as u64).expect("a sparse file");
    let labels: Vec<u8> = (0..ROWS).map(|i| (i % 3) as u8).collect();
    bench.npy("big/y_train.npy", "|u1", &format!("({ROWS},)"), &labels);
    drop(labels);

    let (data, out) = (bench.text("big"), bench.text("out"));
    let args = ["train", "--data", &data, "--layers", "1024,16,3", "--steps", "60", "--batch-size", "64"];
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("limbeck"))
        .args(args)
        .args(["--device-memory", "64MiB", "--json", "--out", &out])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it runs");
    // The high-water mark only grows: the last look before the end is the one that counts.
    let mut peak = 0;
    while child.try_wait().expect("a child").is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        peak = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(peak);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let done = child.wait_with_output().expect("its output");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    println!("peak resident set {} MiB", peak >> 10);
    // Order, slots and labels take 12 MiB each, on the host and on a software device; the driver takes some.
    assert!(peak > 50 << 10 && peak < 600 << 10, "{} MiB", peak >> 10);
}
