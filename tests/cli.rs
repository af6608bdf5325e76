//! The binary from outside: what it prints, what it writes, how it fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;

fn limbeck(args: &[&str]) -> Output {
    let out =
        Command::cargo_bin("limbeck").expect("the binary is built").args(args).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    out
}

/// A failing command: exit code and stderr.
fn fails(args: &[&str]) -> (i32, String) {
    let out = limbeck(args);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    let code = out.status.code().expect("an exit code");
    assert_ne!(code, 0, "{args:?} succeeded");
    assert!(out.stdout.is_empty(), "{args:?}: results of a failed run: {out:?}");
    (code, stderr)
}

fn expect(args: &[&str], code: i32, words: &[&str]) {
    let (found, stderr) = fails(args);
    assert_eq!(found, code, "{args:?}: {stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: `{word}` is not in: {stderr}");
    }
}

fn json(args: &[&str]) -> serde_json::Value {
    let out = limbeck(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("one JSON object")
}

/// A folder with a tiny data set of IDX files: 2x2 images in three classes, told apart by which
/// pixel is bright.
struct Bench {
    dir: tempfile::TempDir,
}

fn idx(magic: u32, dims: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    dims.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
    bytes.extend(data);
    bytes
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().expect("a temporary folder") };
        fs::create_dir(bench.path("data")).expect("created");
        for (part, rows) in [("train", 90u32), ("t10k", 30)] {
            let labels: Vec<u8> = (0..rows).map(|i| (i % 3) as u8).collect();
            let images: Vec<u8> = labels
                .iter()
                .zip(0..)
                .flat_map(|(&l, i)| (0..4).map(move |p| if p == l { 200 + (i % 50) } else { i % 20 }))
                .collect();
            bench.write(&format!("data/{part}-images-idx3-ubyte"), &idx(0x803, &[rows, 2, 2], &images));
            bench.write(&format!("data/{part}-labels-idx1-ubyte"), &idx(0x801, &[rows], &labels));
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("written");
    }

    fn train(&self, out: &str, more: &[&str]) -> Vec<String> {
        let fixed = ["train", "--data", &self.text("data"), "--out", &self.text(out)];
        let mut args: Vec<String> = fixed.iter().chain(more).map(|s| (*s).to_owned()).collect();
        for (option, value) in [("--layers", "4,8,3"), ("--epochs", "2"), ("--batch-size", "16")] {
            if !more.contains(&option) && (option != "--epochs" || !more.contains(&"--steps")) {
                args.extend([option.to_owned(), value.to_owned()]);
            }
        }
        args
    }

    fn teacher(&self) -> String {
        let args = self.train("teacher", &["--lr", "0.02", "--epochs", "20"]);
        assert!(limbeck(&refs(&args)).status.success());
        self.text("teacher/model.safetensors")
    }

    /// Nothing may be left in a folder whose run failed before it began.
    fn absent(&self, out: &str) {
        assert!(!self.path(out).exists(), "{out} was made by a run that could not start");
    }
}

fn refs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).expect("metrics.jsonl");
    text.lines().map(|l| serde_json::from_str(l).expect("a JSON object per line")).collect()
}

#[test]
fn devices_lists_the_adapter_that_a_run_takes() {
    let report = json(&["devices", "--json"]);
    let chosen =
        report["adapters"].as_array().expect("a list").iter().filter(|a| a["chosen"] == true).count();
    assert_eq!((report["schema_version"].as_u64(), chosen), (Some(1), 1));
}

impl Bench {
    /// The summary of a run of which the environment says `value` for `name`, or nothing.
    fn summary(&self, more: &[&str], name: &str, value: Option<&str>) -> serde_json::Value {
        let args = self.train("out", &[&["--json", "--force"], more].concat());
        let mut command = Command::cargo_bin("limbeck").expect("the binary is built");
        command.args(args).env_remove(name).envs(value.map(|v| (name, v)));
        let out = command.output().expect("it runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("JSON")
    }
}

/// Small steps keep lavapipe to one thread; a user's own setting gives the same weights.
#[test]
fn the_driver_s_threads_change_no_bit() {
    let bench = Bench::new();
    let hash = |threads| bench.summary(&[], "LP_NUM_THREADS", threads)["weights_sha256"].clone();
    let alone = hash(None);
    assert!(alone.is_string());
    assert_eq!([hash(Some("1")), hash(Some("3"))], [alone.clone(), alone]);
}

/// Large steps widen lavapipe's vectors where the CPU has them; another width gives the same weights.
#[test]
fn the_driver_s_vector_width_changes_no_bit() {
    let bench = Bench::new();
    // 300 MFLOP a step.
    let large = ["--layers", "4,1024,1024,3", "--batch-size", "48", "--steps", "3"];
    let run = |width| bench.summary(&large, "LP_NATIVE_VECTOR_WIDTH", width);
    let wide = run(None);
    let adapter = wide["adapter"].as_str().expect("an adapter");
    let is_wide = limbeck::gpu::environment::has_wide_vectors() && adapter.contains("llvmpipe");
    assert_eq!(adapter.contains("512 bits"), is_wide, "{adapter}");
    for width in ["128", "256"] {
        let other = run(Some(width));
        let adapter = other["adapter"].as_str().expect("an adapter");
        assert_eq!(adapter.contains(&format!("{width} bits")), adapter.contains("llvmpipe"), "{adapter}");
        assert_eq!(other["weights_sha256"], wide["weights_sha256"], "{width}");
    }
}

/// A profile of lavapipe belongs to a vector width, and a run by it has that width.
#[test]
fn a_profile_brings_the_vector_width_that_it_was_measured_at() {
    let bench = Bench::new();
    let run = |more: &[&str], width| bench.summary(more, "LP_NATIVE_VECTOR_WIDTH", width);
    let narrow = run(&[], Some("128"));
    let profile = serde_json::json!({ "schema_version": 1, "adapter": narrow["adapter"], "answers": {} });
    bench.write("profile.json", profile.to_string().as_bytes());
    let by_profile = run(&["--profile", &bench.text("profile.json")], None);
    assert_eq!(by_profile["adapter"], narrow["adapter"]);
    assert_eq!(by_profile["weights_sha256"], narrow["weights_sha256"]);
}

/// Logits that no binding holds: micro-batches and batches of evaluation are cut until they fit.
#[test]
fn classes_too_wide_for_a_binding() {
    const CLASSES: usize = 152_000;
    let bench = Bench::new();
    fs::create_dir(bench.path("wide")).expect("created");
    for (part, rows) in [("train", 300u32), ("t10k", 300)] {
        let images: Vec<u8> = (0..rows * 4).map(|i| (i * 37 % 251) as u8).collect();
        let labels: Vec<u8> = (0..rows).map(|i| (i % 250) as u8).collect();
        bench.write(&format!("wide/{part}-images-idx3-ubyte"), &idx(0x803, &[rows, 2, 2], &images));
        bench.write(&format!("wide/{part}-labels-idx1-ubyte"), &idx(0x801, &[rows], &labels));
    }
    let (data, out, layers) = (bench.text("wide"), bench.text("out"), format!("4,3,{CLASSES}"));
    let classes = CLASSES.to_string();
    let train = |more: &[&str]| {
        let network = ["train", "--data", &data, "--classes", &classes, "--layers", &layers];
        let run = ["--steps", "1", "--batch-size", "300", "--out", &out, "--force", "--json"];
        json(&network.iter().chain(&run).chain(more).copied().collect::<Vec<_>>())
    };
    let cut = train(&[]);
    assert_eq!(cut["test"]["rows"], 300, "{cut}");
    assert!(cut["test"]["nll"].as_f64().is_some_and(f64::is_finite), "{cut}");

    let adapters = json(&["devices", "--json"]);
    let chosen = adapters["adapters"].as_array().and_then(|all| all.iter().find(|a| a["chosen"] == true));
    let binding = chosen.and_then(|a| a["max_binding"].as_u64()).expect("the binding of the adapter");
    let fits = |count: &u64| 300 % count == 0 && 300 / count * CLASSES as u64 * 4 <= binding;
    let count = (1u64..).find(fits).expect("a number of micro-batches").to_string();
    assert_eq!(train(&["--accumulate", &count])["weights_sha256"], cut["weights_sha256"]);
}

/// A small pair is measured in a process of its own where the driver is lavapipe, and looks the same.
#[test]
fn bench_all_of_one_name() {
    // An adapter that was named, here the one that is taken anyway, reaches the process of the small pairs.
    let devices = json(&["devices", "--json"]);
    let adapters = devices["adapters"].as_array().expect("a list");
    let chosen = adapters.iter().find(|a| a["chosen"] == true).expect("one is taken");
    let index = chosen["index"].to_string();
    let result = json(&["bench", "all", "--shapes", "small", "--json", "--adapter", &index]);
    assert_eq!(result["adapter"]["name"], chosen["name"]);
    let records = result["records"].as_array().expect("a list");
    let of = |bench: &str| records.iter().filter(|r| r["bench"] == bench).collect::<Vec<_>>();
    let [step] = of("step")[..] else { panic!("one step in {result}") };
    assert_eq!(step["shape"], "small");
    for key in
        ["median_ms", "steps_per_second", "fraction_of_peak", "fraction_of_matmul", "host_us_per_dispatch"]
    {
        assert!(step[key].as_f64().is_some_and(|v| v > 0.0), "{key} in {step}");
    }
    assert!(of("matmul").iter().all(|r| r["shape"] == "small/forward"), "{result}");
    // The peaks are those of one process: three chains and the copy.
    assert_eq!(of("peak").len(), 4, "{result}");
}

#[test]
fn train_distill_eval() {
    let bench = Bench::new();
    let teacher = bench.teacher();
    let before = fs::read(&teacher).expect("the teacher");
    let result = json(&[
        "distill",
        "--data",
        &bench.text("data"),
        "--teacher",
        &teacher,
        "--layers",
        "4,5,3",
        "--epochs",
        "40",
        "--batch-size",
        "16",
        "--lr",
        "0.02",
        "--temperature",
        "2",
        "--alpha",
        "0.5",
        "--log-every",
        "10",
        "--validation",
        "0.2",
        "--out",
        &bench.text("student"),
        "--json",
    ]);
    assert_eq!(fs::read(&teacher).expect("the teacher"), before, "distillation touched the teacher's file");
    assert!(result["test"]["accuracy"].as_f64().expect("a number") > 0.9, "{result}");
    assert_eq!(result["parameters"], 4 * 5 + 5 + 5 * 3 + 3);

    let rows = lines(&bench.path("student/metrics.jsonl"));
    let row = rows.iter().find(|r| r["split"] == "train").expect("a training row");
    let of = |split: &str| rows.iter().filter(|r| r["split"] == split).count();
    // 72 training rows in batches of 16: 5 steps an epoch, 200 steps, one row in ten.
    assert_eq!((of("train"), of("validation"), of("test")), (20, 40, 1));
    for key in ["step", "epoch", "loss", "hard_loss", "soft_loss", "accuracy", "agreement", "lr"] {
        assert!(row[key].is_number(), "{key} in {}", row);
    }
    let loss = |r: &serde_json::Value| {
        0.5 * r["hard_loss"].as_f64().expect("a number") + 0.5 * r["soft_loss"].as_f64().expect("a number")
    };
    assert!((row["loss"].as_f64().expect("a number") - loss(row)).abs() < 1e-9);

    let seen = json(&[
        "eval",
        "--data",
        &bench.text("data"),
        "--model",
        &bench.text("student/student.safetensors"),
        "--teacher",
        &teacher,
        "--json",
    ]);
    assert_eq!(seen["evaluation"], result["test"]);
    assert!(seen["quality"]["ece"].is_number() && seen["teacher"]["kl_reference_model"].is_number());
    assert_eq!((&seen["quality"], &seen["teacher"]), (&result["quality"], &result["beside_teacher"]));
    let chosen = result["chosen_by"].as_str().expect("what chose the weights");
    assert!(chosen.contains("validation rows") && chosen.contains("test rows were seen once"), "{chosen}");
    assert_eq!(seen["weights_sha256"], result["weights_sha256"]);

    let bytes = fs::read(bench.path("student/student.safetensors")).expect("the student");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut names = file.names();
    names.sort_unstable();
    assert_eq!(names, ["layers.0.bias", "layers.0.weight", "layers.1.bias", "layers.1.weight"]);
    assert_eq!(file.tensor("layers.0.weight").expect("there").shape(), [5, 4]);
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_others() {
    let bench = Bench::new();
    let hash = |out: &str, seed: &str| {
        let args = bench.train(out, &["--seed", seed, "--json"]);
        json(&refs(&args))["weights_sha256"].as_str().expect("a hash").to_owned()
    };
    let first = hash("a", "3");
    assert_eq!(first, hash("b", "3"));
    assert_ne!(first, hash("c", "4"));
}

#[test]
fn init_starts_from_the_given_weights() {
    let bench = Bench::new();
    let teacher = bench.teacher();
    // A learning rate too small to move an f32 weight: what comes out is what went in.
    let args = bench.train("again", &["--init", &teacher, "--lr", "1e-30", "--steps", "1", "--no-shuffle"]);
    assert!(limbeck(&refs(&args)).status.success());
    let read = |p: &Path| {
        let bytes = fs::read(p).expect("a model");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        file.tensor("layers.1.weight").expect("there").data().to_vec()
    };
    assert_eq!(read(Path::new(&teacher)), read(&bench.path("again/model.safetensors")));
}

#[test]
fn results_are_not_overwritten_without_force() {
    let bench = Bench::new();
    let teacher = bench.teacher();
    let before = fs::read(&teacher).expect("the teacher");
    let again = bench.train("teacher", &[]);
    expect(&refs(&again), 2, &["model.safetensors exists", "--force"]);
    assert_eq!(fs::read(&teacher).expect("the teacher"), before);
    let forced = bench.train("teacher", &["--force", "--seed", "9"]);
    assert!(limbeck(&refs(&forced)).status.success());
    assert_ne!(fs::read(&teacher).expect("the teacher"), before);
}

#[test]
fn bad_data_is_refused() {
    let bench = Bench::new();
    let run = |words: &[&str]| {
        expect(&refs(&bench.train("out", &[])), 4, words);
        bench.absent("out");
    };
    let images = fs::read(bench.path("data/train-images-idx3-ubyte")).expect("images");
    let labels = fs::read(bench.path("data/train-labels-idx1-ubyte")).expect("labels");
    let image_file = "data/train-images-idx3-ubyte";
    let label_file = "data/train-labels-idx1-ubyte";

    bench.write(image_file, &images[..images.len() - 5]);
    run(&["train-images-idx3-ubyte", "expected", "found"]);
    bench.write(image_file, &idx(0x0999, &[90, 2, 2], &images[16..]));
    run(&["train-images-idx3-ubyte", "expected", "found"]);
    bench.write(image_file, &images);

    bench.write(label_file, &idx(0x801, &[89], &labels[8..97]));
    run(&["90", "89"]);
    bench.write(label_file, &labels);

    fs::remove_file(bench.path(image_file)).expect("removed");
    bench.write("data/train-images-idx3-ubyte.gz", b"\x1f\x8b\x08\x00 this is no deflate stream");
    run(&["train-images-idx3-ubyte.gz"]);
    fs::remove_file(bench.path("data/train-images-idx3-ubyte.gz")).expect("removed");
    run(&["train-images-idx3-ubyte"]);

    let missing = bench.train("out", &[]);
    let missing: Vec<_> = missing.iter().map(|a| a.replace("/data", "/nowhere")).collect();
    expect(&refs(&missing), 4, &["nowhere"]);
}

#[test]
fn a_label_outside_the_classes_is_refused() {
    let bench = Bench::new();
    // The test set has a class that training never saw.
    let labels: Vec<u8> = (0..30).map(|i| if i == 7 { 3 } else { i % 3 }).collect();
    bench.write("data/t10k-labels-idx1-ubyte", &idx(0x801, &[30], &labels));
    expect(&refs(&bench.train("out", &[])), 4, &["t10k-labels-idx1-ubyte", "row 7", "3"]);
    bench.absent("out");
}

#[test]
fn bad_options_are_refused() {
    let bench = Bench::new();
    let teacher = bench.teacher();
    let data = bench.text("data");
    let out = bench.text("out");
    let train = |more: &[&str], code, words: &[&str]| {
        expect(&refs(&bench.train("out", more)), code, words);
        bench.absent("out");
    };
    train(&["--layers", "5,8,3"], 2, &["4 inputs", "5 inputs"]);
    train(&["--layers", "4,8,2"], 2, &["3 outputs", "2 outputs"]);
    train(&["--layers", "4"], 2, &["at least two sizes"]);
    train(&["--lr", "0"], 2, &["--lr", "above 0"]);
    train(&["--batch-size", "0"], 2, &["--batch-size", "at least 1"]);
    train(&["--adapter", "no such card"], 3, &["no usable adapter", "no such card", "limbeck devices"]);
    train(&["--backend", "glide"], 2, &["--backend", "glide"]);

    let distill = |more: &[&str], code, words: &[&str]| {
        let mut args = vec!["distill", "--data", &data, "--out", &out, "--epochs", "1"];
        for (option, value) in [("--teacher", teacher.as_str()), ("--layers", "4,5,3")] {
            if !more.contains(&option) {
                args.extend([option, value]);
            }
        }
        args.extend(more);
        expect(&args, code, words);
        bench.absent("out");
    };
    distill(&["--temperature", "0"], 2, &["temperature", "above 0"]);
    distill(&["--hard-weight", "0", "--soft-weight", "0"], 2, &["at least one above 0"]);
    distill(&["--hard-weight", "-1", "--soft-weight", "1"], 2, &["hard_weight", "-1"]);
    distill(&["--alpha", "1.5"], 2, &["--alpha", "1.5"]);
    distill(&["--layers", "4,5,4"], 4, &["4 outputs", "found 3"]);
}

#[test]
fn bad_models_are_refused() {
    let bench = Bench::new();
    let teacher = bench.teacher();
    let data = bench.text("data");
    let good = fs::read(&teacher).expect("the teacher");
    let model = bench.text("bad.safetensors");
    let eval = |bytes: &[u8], words: &[&str]| {
        bench.write("bad.safetensors", bytes);
        expect(&["eval", "--data", &data, "--model", &model], 4, words);
    };
    let mut nan = good.clone();
    let at = nan.len() - 4;
    nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    eval(&nan, &["bad.safetensors", "finite", "NaN"]);
    eval(&good[..good.len() - 3], &["bad.safetensors"]);
    eval(b"not a model", &["bad.safetensors"]);
    eval(b"", &["bad.safetensors"]);
    expect(&["eval", "--data", &data, "--model", &bench.text("none.safetensors")], 4, &["none.safetensors"]);
}

#[test]
fn no_adapter_is_exit_code_3_with_the_package_that_helps() {
    let out = Command::cargo_bin("limbeck")
        .expect("the binary is built")
        .args(["devices"])
        .env("VK_DRIVER_FILES", "/nowhere/icd.json")
        .output()
        .expect("it runs");
    let stderr = String::from_utf8_lossy(&out.stderr);
    if cfg!(target_os = "linux") {
        assert_eq!(out.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains("/nowhere/icd.json does not exist"), "{stderr}");
        assert!(stderr.contains("mesa-vulkan-drivers"), "{stderr}");
    }
}

#[test]
fn help_is_there_for_every_command() {
    for command in ["demo", "devices", "train", "distill", "eval", "compare"] {
        let out = limbeck(&[command, "--help"]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success() && text.contains("--adapter"), "{command}: {text}");
    }
}
