//! `limbeck reproduce`: each reproduction whole, on a synthetic set, with every feature of it switched on;
//! and the teacher that learns along, against the reference.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;

use limbeck::data::{self, Dataset, Elements};
use limbeck::distill::infer::Inference;
use limbeck::distill::{Guard, Loss, Optimizer, Regularize};
use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels::head::Soft;
use limbeck::kernels::matmul::Activation;
use limbeck::mlp::Mlp;
use limbeck::mlp::weights::{Initializer, Weights};
use limbeck::reference::{self, Convention, Matrix, SoftLoss, argmax};
use limbeck::rng;
use limbeck::train::schedule::Schedules;
use limbeck::train::{Length, Recipe, Replica, along};

/// MNIST in small: ten classes of 8x8 images, each a random pattern of its own with noise.
fn write_digits(folder: &Path) {
    fs::create_dir_all(folder).expect("created");
    let random = |seed: u64, i: usize| rng::uniform(seed, rng::stream::CHECK, i as u64);
    for (part, rows, seed) in [("train", 600u32, 1), ("t10k", 200, 2)] {
        let labels: Vec<u8> = (0..rows).map(|i| (i % 10) as u8).collect();
        let pixel = |row: usize, p: usize| {
            let pattern = random(0, usize::from(labels[row]) * 64 + p);
            (255.0 * (0.7 * pattern.round() + 0.3 * random(seed, row * 64 + p))) as u8
        };
        let images: Vec<u8> = (0..rows as usize)
            .flat_map(|row| (0..64).map(move |p| (row, p)))
            .map(|(r, p)| pixel(r, p))
            .collect();
        let header = |magic: u32, dims: &[u32]| {
            [&[magic], dims].concat().iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>()
        };
        let images = [header(0x803, &[rows, 8, 8]), images].concat();
        fs::write(folder.join(format!("{part}-images-idx3-ubyte")), images).expect("written");
        let labels = [header(0x801, &[rows]), labels].concat();
        fs::write(folder.join(format!("{part}-labels-idx1-ubyte")), labels).expect("written");
    }
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        write_digits(&dir.path().join("mnist"));
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Exit code, stdout and stderr.
    fn reproduce(&self, what: &str, out: &str, more: &[&str]) -> (i32, String, String) {
        let mut command = Command::cargo_bin("limbeck").expect("the binary is built");
        command.args(["reproduce", what, "--schedule", "smoke", "--data"]).arg(self.path("mnist"));
        let run = command.arg("--out").arg(self.path(out)).args(more).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let stderr = text(&run.stderr);
        assert!(!stderr.contains("panicked"), "{stderr}");
        (run.status.code().expect("an exit code"), text(&run.stdout), stderr)
    }

    fn report(&self, out: &str) -> Value {
        let text = fs::read(self.path(out).join("report.json")).expect("a report");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// Errors of a kept network on the test rows.
    fn errors(&self, gpu: &Gpu, out: &str, network: &str) -> usize {
        let test =
            data::load(self.path("mnist"), &Default::default()).expect("data").test.expect("test rows");
        let file = self.path(out).join(format!("networks/{network}.safetensors"));
        let weights = Weights::load(&file, None).expect("a kept network");
        let mlp = Mlp::upload(gpu, "kept", &[weights]).expect("uploaded");
        let z =
            Inference::record(gpu, &mlp, &test, 100).expect("recorded").logits_blocking(gpu).expect("logits");
        let z = Matrix::from_f32(test.rows(), 10, &z[0]);
        let labels = test.labels.expect("labels");
        (0..z.rows).filter(|r| argmax(z.row(*r)) != labels[*r] as usize).count()
    }
}

fn gpu() -> Gpu {
    Gpu::open(&AdapterChoice::default()).expect("a device")
}

/// The exit code is the verdict of the rows.
fn check_verdict(code: i32, report: &Value, stderr: &str) {
    let rows = report["rows"].as_array().expect("rows");
    let outside: Vec<_> = rows.iter().filter(|r| r["inside"] == Value::Bool(false)).collect();
    assert_eq!(code, i32::from(!outside.is_empty()), "{stderr}");
    for row in outside {
        assert!(stderr.contains(row["row"].as_str().expect("a name")), "{row} is not in: {stderr}");
    }
}

#[test]
fn hinton_2015_in_small() {
    let bench = Bench::new();
    let (code, table, stderr) = bench.reproduce("hinton2015", "out", &[]);
    let report = bench.report("out");
    check_verdict(code, &report, &stderr);
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 12, "{rows:?}");
    let markdown = fs::read_to_string(bench.path("out/report.md")).expect("a report");
    for row in rows {
        for part in ["row", "published", "ours", "asked"] {
            let text = row[part].as_str().expect("text");
            assert!(table.contains(text) && markdown.contains(text), "{text} is not in: {table}\n{markdown}");
        }
    }
    let gpu = gpu();
    for (row, network) in
        [(0, "teacher"), (1, "hard"), (2, "soft"), (3, "without-3"), (6, "without-3-control")]
    {
        let said = rows[row]["values"]["errors"].as_f64();
        assert_eq!(said, Some(bench.errors(&gpu, "out", network) as f64), "{network}");
    }
    let share = rows[7]["values"]["error"].as_f64();
    assert_eq!(share, Some(bench.errors(&gpu, "out", "only-7-8") as f64 / 200.0));
    let widths = ["1", "2.5", "4", "8", "12", "20", "40"].map(|t| {
        let errors = (0..2).map(|seed| bench.errors(&gpu, "out", &format!("width-6-t{t}-seed{seed}")));
        (format!("errors_t{t}"), errors.sum::<usize>() as f64 / 2.0)
    });
    for (name, mean) in widths {
        assert_eq!(rows[11]["values"][&name].as_f64(), Some(mean), "{name}");
    }

    // Again, from the networks that are there but for one: the same bits, so the same numbers.
    let lost = bench.path("out/networks/soft.safetensors");
    let bits = fs::read(&lost).expect("kept");
    fs::remove_file(&lost).expect("removed");
    let (code, ..) = bench.reproduce("hinton2015", "out", &["--resume", "--json"]);
    let resumed = bench.report("out");
    check_verdict(code, &resumed, &stderr);
    assert_eq!(resumed["rows"], report["rows"]);
    assert_eq!(fs::read(&lost).expect("trained again"), bits);
    let again: Vec<_> =
        resumed["runs"].as_array().expect("runs").iter().map(|r| !r["seconds"].is_null()).collect();
    assert_eq!(again, [false, false, true, false, false, false, false, false]);

    // Nothing is overwritten unasked, and nothing of another seed gone on with.
    let (code, _, stderr) = bench.reproduce("hinton2015", "out", &[]);
    assert!(code == 2 && stderr.contains("--resume"), "{stderr}");
    let (code, _, stderr) = bench.reproduce("hinton2015", "out", &["--resume", "--seed", "1"]);
    assert!(code == 2 && stderr.contains("seed 1"), "{stderr}");
}

#[test]
fn keras_in_small_with_the_teacher_along() {
    let bench = Bench::new();
    let (code, _, stderr) = bench.reproduce("keras", "out", &["--train-teacher"]);
    let report = bench.report("out");
    check_verdict(code, &report, &stderr);
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 8);
    let gpu = gpu();
    let mean = |kind: &str| {
        let errors = (0..2).map(|seed| bench.errors(&gpu, "out", &format!("{kind}-seed{seed}")));
        1.0 - errors.sum::<usize>() as f64 / 400.0
    };
    let kinds = [
        (1, "scratch"),
        (2, "distilled"),
        (3, "distilled-without-t2"),
        (4, "along"),
        (5, "along-teacher"),
        (6, "along-without-t2"),
    ];
    for (row, kind) in kinds {
        let said = rows[row]["values"]["accuracy"].as_f64().expect("accuracy");
        assert!((said - mean(kind)).abs() < 1e-12, "{kind}: {said}, {}", mean(kind));
    }
    // The frozen teacher stands still, the other one does not.
    let read = |name: &str| fs::read(bench.path(&format!("out/networks/{name}.safetensors"))).expect("kept");
    assert_ne!(read("along-teacher-seed0"), read("teacher"));
    assert_ne!(read("along-seed0"), read("distilled-seed0"));
}

#[test]
fn what_is_held_back_is_judged_without_a_verdict() {
    let bench = Bench::new();
    let (code, stdout, _) = bench.reproduce("keras", "out", &["--judge", "validation", "--json"]);
    assert_eq!(code, 0);
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&report["trained_rows"], &report["judged_rows"]), (&550.into(), &50.into()));
    assert!(report["rows"].as_array().expect("rows").iter().all(|row| row["inside"].is_null()));
}

#[test]
fn what_it_is_not_for_is_refused() {
    let bench = Bench::new();
    let (code, _, stderr) = bench.reproduce("hinton2015", "out", &["--train-teacher"]);
    assert!(code == 2 && stderr.contains("--train-teacher"), "{stderr}");
    let mut labels = fs::read(bench.path("mnist/train-labels-idx1-ubyte")).expect("labels");
    labels.iter_mut().skip(8).for_each(|l| *l %= 4);
    fs::write(bench.path("mnist/train-labels-idx1-ubyte"), labels).expect("written");
    fs::remove_file(bench.path("mnist/t10k-labels-idx1-ubyte")).expect("removed");
    fs::remove_file(bench.path("mnist/t10k-images-idx3-ubyte")).expect("removed");
    let (code, _, stderr) = bench.reproduce("hinton2015", "out", &[]);
    assert!(code == 4 && stderr.contains("expected 10 classes, found 4"), "{stderr}");
    assert!(!bench.path("out").exists());
    // An adapter in the environment is no option that stands in the way.
    let mut list = Command::cargo_bin("limbeck").expect("built");
    let list = list.args(["reproduce", "--list"]).env("WGPU_BACKEND", "vulkan").output().expect("runs");
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(text.contains("hinton2015") && text.contains("keras"), "{list:?}");
}

const ROWS: usize = 22;
const BATCH: usize = 8;
const LR: f64 = 0.05;

fn twin(weights: &Weights) -> reference::Mlp {
    let mut mlp = reference::Mlp::zeros(&weights.sizes(), reference::Activation::Tanh);
    for (l, layer) in weights.layers.iter().enumerate() {
        mlp.weights[l] = Matrix::from_f32(layer.outputs, layer.inputs, &layer.weight);
        mlp.biases[l] = layer.bias.iter().map(|b| f64::from(*b)).collect();
    }
    mlp
}

fn learn(mlp: &mut reference::Mlp, x: &Matrix, d_z: &Matrix, by: &mut reference::Optimizer) {
    let gradients = mlp.backward(&mlp.forward(x), d_z);
    let tensors: Vec<&[f64]> = gradients
        .d_weights
        .iter()
        .zip(&gradients.d_biases)
        .flat_map(|(w, b)| [w.data.as_slice(), b.as_slice()])
        .collect();
    by.step(LR, &mut mlp.parameters_mut(), &tensors);
}

/// Both networks descend hard CE + soft T^2 KL(teacher || student); the gradient by the teacher's logits is
/// found by central differences here, so nothing of the reverse KL is taken on trust.
#[test]
fn a_teacher_along_descends_the_students_own_loss() {
    let x: Vec<f32> = (0..ROWS * 6).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let labels: Vec<u32> = (0..ROWS as u32).map(|i| i % 4).collect();
    let set = Dataset::new("here", Elements::F32(x.clone()), vec![6], Some(labels.clone()), Some(4))
        .expect("a set");
    let init = |sizes: &[usize], seed| {
        Weights::init(sizes, Activation::Tanh, Initializer::Glorot, seed).expect("weights")
    };
    let (student, teacher) = (init(&[6, 5, 4], 1), init(&[6, 9, 4], 2));
    let (temperature, hard, soft) = (3.0, 0.3, 0.7);
    let of = |student: &Weights, loss| Replica {
        seed: 0,
        lr: LR,
        loss,
        schedules: Schedules::default(),
        student: student.clone(),
    };
    let reverse = Soft { loss: SoftLoss::ReverseKl, standardise: false };
    let learns = Loss { temperature, hard_weight: hard, soft_weight: soft, ..Loss::HARD };
    let teaches = Loss { soft: reverse, hard_weight: 0.0, ..learns };
    let recipe = Recipe {
        batch: BATCH,
        accumulate: 1,
        length: Length::Epochs(2),
        optimizer: Optimizer::Sgd { momentum: 0.5, nesterov: false, weight_decay: 0.0 },
        shuffle: false,
        log_every: 1,
        guard: Guard::default(),
        features: Vec::new(),
        regularize: Regularize::default(),
    };
    let gpu = gpu();
    let ends =
        along(&gpu, &set, &recipe, vec![of(&student, learns)], vec![of(&teacher, teaches)], |_| Ok(()))
            .expect("trained");

    let head = reference::Head {
        hard_weight: hard,
        soft_weight: soft,
        temperature,
        label_smoothing: 0.0,
        soft_loss: SoftLoss::ForwardKl,
        standardise: false,
    };
    let all = Matrix::from_f32(ROWS, 6, &x);
    let (mut s, mut t) = (twin(&student), twin(&teacher));
    let rule = reference::Rule::Sgd {
        momentum: 0.5,
        nesterov: false,
        weight_decay: 0.0,
        convention: Convention::PyTorch,
    };
    let [mut by_s, mut by_t] = [reference::Optimizer::new(rule), reference::Optimizer::new(rule)];
    for step in 0..2 * ROWS.div_ceil(BATCH) {
        let first = step % ROWS.div_ceil(BATCH) * BATCH;
        let rows: Vec<usize> = (first..ROWS.min(first + BATCH)).collect();
        let wanted: Vec<_> = rows.iter().map(|r| Some(labels[*r] as usize)).collect();
        let x = all.gather(&rows);
        let z = s.forward(&x).logits().clone();
        let v = t.forward(&x).logits().clone();
        let loss = |v: &Matrix| head.loss(&head.evaluate(&z, Some(v), &wanted));
        let mut d_v = Matrix::zeros(v.rows, v.cols);
        for i in 0..v.data.len() {
            let moved = |by: f64| {
                let mut v = v.clone();
                v.data[i] += by;
                loss(&v)
            };
            d_v.data[i] = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        }
        let d_z = head.evaluate(&z, Some(&v), &wanted).d_z.value;
        learn(&mut s, &x, &d_z, &mut by_s);
        learn(&mut t, &x, &d_v, &mut by_t);
    }
    for ((name, end), expected) in ["student", "teacher"].iter().zip(&ends).zip([&s, &t]) {
        let found = twin(&end.read_blocking(&gpu).expect("read")[0]);
        let moved = if *name == "student" { twin(&student) } else { twin(&teacher) };
        let far = |a: &reference::Mlp, b: &reference::Mlp| {
            let all = |m: &reference::Mlp| {
                let weights = m.weights.iter().flat_map(|w| w.data.clone());
                weights.chain(m.biases.concat()).collect::<Vec<_>>()
            };
            all(a).into_iter().zip(all(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        assert!(far(&moved, expected) > 1e-2, "{name}: it has to move for this to say anything");
        assert!(far(&found, expected) < 2e-6, "{name}: {:e} off", far(&found, expected));
    }
}
