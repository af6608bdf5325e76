//! Held to Keras and PyTorch themselves: the same student, step for step, and each loss with its gradient.
//! Their numbers are in tests/parity, written by `make_fixtures.py`; no Python is needed here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use limbeck::data::{Dataset, optdigits};
use limbeck::distill::infer::Inference;
use limbeck::distill::step::{Guard, Loss, Optimizer, Teacher};
use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels::adam::Adam;
use limbeck::kernels::head::Soft;
use limbeck::kernels::matmul::Activation;
use limbeck::mlp::Mlp;
use limbeck::mlp::weights::{Layer, Model, ReadOptions, Weights};
use limbeck::reference::losses::{RowLoss, SoftLoss, cross_entropy};
use limbeck::train::schedule::Schedules;
use limbeck::train::{Length, Recipe, Replica, Rows, Run};
use safetensors::SafeTensors;
use serde::Deserialize;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity")
}

/// The fixtures whose name begins with `framework`.
fn cases(framework: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder()).expect("fixtures").map(|e| e.expect("an entry").path());
    let named = |p: &PathBuf| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(framework) && name.ends_with(".safetensors")
    };
    let mut found: Vec<_> = entries.filter(named).collect();
    found.sort();
    found
}

#[derive(Deserialize)]
struct Case {
    activation: String,
    batch: usize,
    temperature: f64,
    hard_weight: f64,
    soft_weight: f64,
    smoothing: f64,
    optimizer: Options,
    loss: Option<String>,
    #[serde(default)]
    a: f64,
    #[serde(default)]
    b: f64,
}

#[derive(Deserialize)]
struct Options {
    kind: String,
    lr: f64,
    weight_decay: f64,
    #[serde(default)]
    momentum: f64,
    #[serde(default)]
    nesterov: bool,
    beta_1: Option<f64>,
    beta_2: Option<f64>,
    epsilon: Option<f64>,
}

impl Options {
    fn optimizer(&self, keras: bool) -> Optimizer {
        let Self { momentum, nesterov, weight_decay, .. } = *self;
        if self.kind == "sgd" {
            return Optimizer::Sgd { momentum, nesterov, weight_decay };
        }
        let adam = Adam {
            beta_1: self.beta_1.expect("beta_1"),
            beta_2: self.beta_2.expect("beta_2"),
            epsilon: self.epsilon.expect("epsilon"),
            weight_decay,
            decoupled: self.kind == "adamw",
        };
        if keras { Optimizer::KerasAdam(adam) } else { Optimizer::Adam(adam) }
    }
}

/// A soft loss by the name that `make_fixtures.py` has for it.
fn soft(name: &str, a: f64, b: f64) -> Soft {
    let (loss, standardise) = match name {
        "forward_kl" => (SoftLoss::ForwardKl, false),
        "reverse_kl" => (SoftLoss::ReverseKl, false),
        "clipped_kl" => (SoftLoss::ClippedKl { clip: 1e-7 }, false),
        "symmetric" => (SoftLoss::Symmetric, false),
        "jsd" => (SoftLoss::Jsd { beta: b }, false),
        "dkd" => (SoftLoss::Dkd { alpha: a, beta: b }, false),
        "mse" => (SoftLoss::Mse, false),
        "sigmoid" => (SoftLoss::Sigmoid, false),
        "lskd" => (SoftLoss::ForwardKl, true),
        "lskd_dkd" => (SoftLoss::Dkd { alpha: a, beta: b }, true),
        other => panic!("no loss `{other}`"),
    };
    Soft { loss, standardise }
}

/// A fixture: what was run, and every tensor as f64.
struct Fixture {
    case: Case,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Fixture {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("a fixture");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("safetensors");
        let case = &header.metadata().as_ref().expect("metadata")["case"];
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors").tensors();
        let tensors = tensors.into_iter().map(|(name, view)| {
            let values = match view.dtype() {
                safetensors::Dtype::F32 => numbers(view.data(), |b| f64::from(f32::from_le_bytes(b))),
                safetensors::Dtype::I32 => numbers(view.data(), |b| f64::from(i32::from_le_bytes(b))),
                _ => numbers(view.data(), f64::from_le_bytes),
            };
            (name, (view.shape().to_vec(), values))
        });
        Self { case: serde_json::from_str(case).expect("a case"), tensors: tensors.collect() }
    }

    fn weights(&self, prefix: &str) -> Weights {
        let activation = Activation::parse(&self.case.activation).expect("an activation");
        let values = |name: String| self.tensors[&name].1.iter().map(|v| *v as f32).collect();
        let layer = |i: usize| {
            let (shape, _) = self.tensors.get(&format!("{prefix}.{i}.weight"))?;
            let (weight, bias) =
                (values(format!("{prefix}.{i}.weight")), values(format!("{prefix}.{i}.bias")));
            Some(Layer { outputs: shape[0], inputs: shape[1], weight, bias })
        };
        Weights { activation, layers: (0..).map_while(layer).collect() }
    }
}

fn numbers<const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.chunks_exact(N).map(|b| of(b.try_into().expect("N bytes"))).collect()
}

/// The distance between two networks' parameters, relative to the second's length.
fn distance(a: &Weights, b: &Weights) -> f64 {
    let all = |w: &Weights| -> Vec<f64> {
        w.layers.iter().flat_map(|l| l.weight.iter().chain(&l.bias)).map(|v| f64::from(*v)).collect()
    };
    let (a, b) = (all(a), all(b));
    assert_eq!(a.len(), b.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// Losses `[step][hard, soft, total]` and last weights of our run of a fixture.
fn run(
    gpu: &Gpu,
    data: &Dataset,
    teacher: &Teacher,
    fixture: &Fixture,
    keras: bool,
) -> (Vec<[f64; 3]>, Weights) {
    let case = &fixture.case;
    let loss = Loss {
        temperature: case.temperature,
        hard_weight: case.hard_weight,
        soft_weight: case.soft_weight,
        smoothing: case.smoothing,
        soft: soft(case.loss.as_deref().unwrap_or("forward_kl"), case.a, case.b),
    };
    let steps = fixture.tensors["losses"].0[0] as u64;
    let recipe = Recipe {
        batch: case.batch,
        accumulate: 1,
        length: Length::Steps(steps),
        optimizer: case.optimizer.optimizer(keras),
        shuffle: false,
        log_every: 1,
        guard: Guard::default(),
        features: Vec::new(),
        regularize: Default::default(),
    };
    let walked = vec![fixture.tensors["order"].1.iter().map(|v| *v as u32).collect()];
    let student = fixture.weights("first");
    let lr = case.optimizer.lr;
    let replica = Replica { seed: 0, lr, loss, schedules: Schedules::default(), student };
    let rows = Rows { walked, ..Rows::default() };
    let mut run = Run::new(gpu, data, rows, teacher, recipe, vec![replica]).expect("a run");
    let mut losses = Vec::new();
    let mut last = run
        .train(|row| {
            losses.push([row.hard_loss, row.soft_loss, row.loss]);
            Ok(())
        })
        .expect("trained");
    (losses, last.swap_remove(0))
}

fn held_to(framework: &str) {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("an adapter");
    let data = optdigits().expect("the embedded set").train;
    let file = folder().join(format!("teacher-{framework}.safetensors"));
    let teacher = Model::load(&file, &ReadOptions::default()).expect("a teacher").weights;
    let teacher = Teacher::Live(Mlp::upload(&gpu, "teacher", &[teacher]).expect("uploaded"));
    let cases = cases(framework);
    assert!(cases.len() >= 4, "{framework}: {} fixtures", cases.len());
    for path in cases {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let fixture = Fixture::read(&path);
        let (losses, last) = run(&gpu, &data, &teacher, &fixture, framework == "keras");
        let (shape, wanted) = &fixture.tensors["losses"];
        assert!(shape[0] >= 50 && losses.len() == shape[0], "{name}: {} steps of {shape:?}", losses.len());
        let (mut early, mut late) = (0.0_f64, 0.0_f64);
        for (step, (found, wanted)) in losses.iter().zip(wanted.chunks_exact(3)).enumerate() {
            let (allowed, worst) = if step < 10 { (1e-5, &mut early) } else { (1e-3, &mut late) };
            for (what, (found, wanted)) in ["hard", "soft", "total"].iter().zip(found.iter().zip(wanted)) {
                let off = (found - wanted).abs() / wanted.abs();
                assert!(off <= allowed, "{name}, step {}, {what} loss: {found} for {wanted}", step + 1);
                *worst = worst.max(off);
            }
        }
        let off = distance(&last, &fixture.weights("last"));
        let moved = distance(&last, &fixture.weights("first"));
        println!(
            "{name:28} losses {early:.1e}, later {late:.1e}; weights {off:.1e} after a way of {moved:.1e}"
        );
        assert!(off <= 1e-4, "{name}: last weights off by {off:.2e}");
        assert!(moved > 1e-2, "{name}: the weights hardly moved");
    }
}

#[test]
fn keras_step_for_step() {
    held_to("keras");
}

#[test]
fn pytorch_step_for_step() {
    held_to("torch");
}

/// The comparison can fail: the other framework's place for epsilon is seen, and a clip that is left out.
#[test]
fn another_convention_is_seen() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("an adapter");
    let data = optdigits().expect("the embedded set").train;
    let file = folder().join("teacher-keras.safetensors");
    let teacher = Model::load(&file, &ReadOptions::default()).expect("a teacher").weights;
    let teacher = Teacher::Live(Mlp::upload(&gpu, "teacher", &[teacher]).expect("uploaded"));
    let fixture = Fixture::read(&folder().join("keras-adam-tanh.safetensors"));
    let (_, last) = run(&gpu, &data, &teacher, &fixture, false);
    assert!(distance(&last, &fixture.weights("last")) > 1e-3);
    let mut fixture = Fixture::read(&folder().join("keras-clipped.safetensors"));
    fixture.case.loss = None;
    let (losses, last) = run(&gpu, &data, &teacher, &fixture, true);
    let off = (losses[0][1] / fixture.tensors["losses"].1[1] - 1.0).abs();
    println!("without the clip: losses {off:.1e}, weights {:.1e}", distance(&last, &fixture.weights("last")));
    assert!(off > 1e-5);
}

/// Files that the frameworks saved, and what they themselves say of 16 test rows.
#[test]
fn their_files_give_their_outputs() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("an adapter");
    let rows = optdigits().expect("the embedded set").test.expect("test rows");
    let rows = rows.select(&(0..16).collect::<Vec<_>>());
    let mut read = Vec::new();
    for framework in ["torch", "keras"] {
        let path = |what: &str| folder().join(format!("teacher-{framework}{what}.safetensors"));
        let model = Model::load(&path(""), &ReadOptions::default()).expect("a model");
        let network = Mlp::upload(&gpu, "model", std::slice::from_ref(&model.weights)).expect("uploaded");
        let ours = Inference::record(&gpu, &network, &rows, 16).expect("recorded");
        let ours = ours.logits_blocking(&gpu).expect("logits").swap_remove(0);
        let bytes = fs::read(path("-logits")).expect("logits");
        let theirs = SafeTensors::deserialize(&bytes).expect("safetensors");
        let theirs =
            numbers(theirs.tensor("logits").expect("logits").data(), |b| f64::from(f32::from_le_bytes(b)));
        assert_eq!(ours.len(), theirs.len());
        let largest = theirs.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
        let off =
            ours.iter().zip(&theirs).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max) / largest;
        println!("{framework}: within {off:.1e}");
        assert!(off <= 1e-5, "{framework}: {off}");
        read.push(model.weights);
    }
    assert_eq!(read[0], read[1], "PyTorch and Keras saved the same network");
}

#[derive(Deserialize)]
struct Line {
    loss: String,
    temperature: f64,
    label: usize,
    z: Vec<f64>,
    v: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
    a: Option<f64>,
    b: Option<f64>,
    e: Option<f64>,
}

impl Line {
    fn ours(&self) -> RowLoss {
        let (a, b) = (self.a.unwrap_or_default(), self.b.unwrap_or_default());
        match self.loss.as_str() {
            "cross_entropy" => cross_entropy(&self.z, self.label, 0.0),
            "label_smoothing" => cross_entropy(&self.z, self.label, self.e.expect("e")),
            name => {
                let Soft { loss, standardise } = soft(name, a, b);
                loss.evaluate(&self.z, &self.v, Some(self.label), self.temperature, standardise)
            }
        }
    }
}

/// Every loss and its gradient against PyTorch's in f64: gaps from 0.01 to several hundreds, T from 0.5 to 20.
#[test]
fn losses_and_gradients_are_pytorchs() {
    let text = fs::read_to_string(folder().join("losses.jsonl")).expect("fixtures");
    let mut worst = BTreeMap::<String, f64>::new();
    for line in text.lines() {
        let line: Line = serde_json::from_str(line).expect("a loss");
        let ours = line.ours();
        assert_eq!(ours.d_z.len(), line.gradient.len());
        let gradient = ours.d_z.iter().map(|d| d.value).zip(line.gradient.iter().copied());
        let size = line.gradient.iter().fold(0.0_f64, |m, g| m.max(g.abs()));
        let worst = worst.entry(line.loss.clone()).or_default();
        for (found, wanted, size) in std::iter::once((ours.loss.value, line.value, line.value.abs()))
            .chain(gradient.map(|(f, w)| (f, w, size)))
        {
            // f64 on both sides; a small loss is a difference of logits of size 1.
            let off = (found - wanted).abs() / (size + 1e-3);
            assert!(off <= 1e-11, "{} at T = {}: {found} for {wanted}", line.loss, line.temperature);
            *worst = worst.max(off);
        }
    }
    println!("{worst:?}");
    assert_eq!(worst.len(), 11, "losses");
}
