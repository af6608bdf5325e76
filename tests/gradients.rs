//! Whole networks on the device against the reference: gradients, the first steps of a training, and
//! the promises of bit-equality.

use limbeck::data::{self, Dataset, Elements};
use limbeck::distill::infer::Inference;
use limbeck::distill::{Feed, Guard, Loss, Micro, Optimizer, Step, Teacher};
use limbeck::gpu::program::Traced;
use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels::adam::Adam;
use limbeck::kernels::head::Soft;
use limbeck::kernels::matmul::Activation;
use limbeck::mlp::Mlp;
use limbeck::mlp::weights::{Initializer, Weights};
use limbeck::reference::linalg::{column_sums, matmul};
use limbeck::reference::{self, Bounded, Convention, Matrix, Rounded, Rule};
use limbeck::train::schedule::Schedules;
use limbeck::train::{Length, Recipe, Replica, Rows, Run};
use limbeck::verify::matmul::oracle;

fn open() -> Gpu {
    Gpu::open(&AdapterChoice::default()).expect("a device")
}

fn weights(sizes: &[usize], activation: Activation, seed: u64) -> Weights {
    let mut weights = Weights::init(sizes, activation, Initializer::Glorot, seed).expect("weights");
    // Biases start at zero; a gradient test wants them to matter.
    for (l, layer) in weights.layers.iter_mut().enumerate() {
        for (i, b) in layer.bias.iter_mut().enumerate() {
            *b = 0.1 * ((l + 3 * i + seed as usize) % 7) as f32 - 0.3;
        }
    }
    weights
}

/// The same network in the reference.
fn twin(weights: &Weights) -> reference::Mlp {
    let mut mlp = reference::Mlp::zeros(&weights.sizes(), oracle(weights.activation));
    for (l, layer) in weights.layers.iter().enumerate() {
        mlp.weights[l] = Matrix::from_f32(layer.outputs, layer.inputs, &layer.weight);
        mlp.biases[l] = layer.bias.iter().map(|b| f64::from(*b)).collect();
    }
    mlp
}

/// 23 rows of 7 features, 5 classes; some rows without a label.
fn small_set() -> Dataset {
    let (rows, features) = (23, 7);
    let x = (0..rows * features).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let labels = (0..rows as u32).map(|i| if i % 4 == 3 { data::UNLABELLED } else { i % 5 }).collect();
    Dataset::new("here", Elements::F32(x), vec![features], Some(labels), Some(5)).expect("a set")
}

const LOSS: Loss =
    Loss { temperature: 3.0, hard_weight: 0.25, soft_weight: 0.75, smoothing: 0.125, ..Loss::HARD };

const SGD: Optimizer = Optimizer::Sgd { momentum: 0.5, nesterov: true, weight_decay: 0.0 };

fn head(loss: &Loss) -> reference::Head {
    reference::Head {
        hard_weight: loss.hard_weight,
        soft_weight: loss.soft_weight,
        temperature: loss.temperature,
        label_smoothing: loss.smoothing,
        soft_loss: loss.soft.loss,
        standardise: loss.soft.standardise,
    }
}

/// What a traced dispatch wrote, by the tensor's label.
struct Trace(Vec<Traced>);

impl Trace {
    /// Replica `r` of a tensor [replicas, rows, cols] with ordinary strides.
    fn tensor(&self, label: &str, r: usize, rows: usize, cols: usize) -> Vec<f32> {
        let bits = self
            .0
            .iter()
            .flat_map(|t| &t.outputs)
            .find(|(name, _)| name == label)
            .map(|(_, bits)| bits)
            .unwrap_or_else(|| panic!("no dispatch wrote `{label}`"));
        let stride = cols.next_multiple_of(4);
        let replica = &bits[r * rows * stride..][..rows * stride];
        let row = |row: &[u32]| -> Vec<f32> { row[..cols].iter().map(|b| f32::from_bits(*b)).collect() };
        replica.chunks_exact(stride).flat_map(row).collect()
    }

    fn matrix(&self, label: &str, r: usize, rows: usize, cols: usize) -> Matrix {
        Matrix::from_f32(rows, cols, &self.tensor(label, r, rows, cols))
    }
}

#[track_caller]
fn hold(what: &str, device: &[f32], expected: &Bounded, n: usize) {
    let worst = reference::worst(device, expected, n);
    assert!(worst.passes(), "{what}: {worst:?}");
}

/// The first step of `replicas` students, every dispatch held to the reference on what the device
/// itself fed it, and the gradient as a whole to the reference's own.
fn whole_network(activation: Activation, sizes: &[usize], replicas: usize, rows: usize) {
    let (gpu, set) = (open(), small_set());
    let batch = 13;
    let what = format!("{activation:?} {sizes:?} x {replicas}, {rows} rows");
    let students: Vec<Weights> = (0..replicas as u64).map(|s| weights(sizes, activation, 5 + s)).collect();
    let teacher_weights = weights(&[7, 9, 5], Activation::Tanh, 99);
    let teacher = Mlp::upload(&gpu, "teacher", std::slice::from_ref(&teacher_weights)).expect("a teacher");
    let feed = Feed::resident(&gpu, &set, None, replicas, set.rows()).expect("a feed");
    let orders: Vec<Vec<u32>> =
        (0..replicas as u64).map(|r| limbeck::rng::permutation(r, 0, set.rows() as u32)).collect();
    feed.order.write(&gpu, &orders.concat()).expect("an order");
    let (teacher, guard) = (Teacher::Live(teacher), Guard::default());
    let micro = Micro { rows: batch, count: 1 };
    let step = Step::record(
        &gpu,
        &feed,
        &teacher,
        LOSS.soft.into(),
        &students,
        SGD,
        guard,
        Default::default(),
        micro,
    )
    .expect("a step");
    let scalars: Vec<_> = (0..replicas).map(|_| step.scalars(1, 2, rows, 0.25, &LOSS)).collect();
    step.prepare(&gpu, &scalars).expect("scalars");
    let trace = Trace(step.program().trace_blocking(&gpu).expect("a trace"));
    let gradients = step.gradient.read_blocking(&gpu).expect("gradients");

    let Elements::F32(all) = &set.x else { panic!("f32 rows") };
    let all = Matrix::from_f32(set.rows(), 7, all);
    let layers = sizes.len() - 1;
    for r in 0..replicas {
        let picked: Vec<usize> = orders[r][2..2 + rows].iter().map(|i| *i as usize).collect();
        let mut x = all.gather(&picked);
        // Rows past a short batch are zeros on the device.
        x.data.resize(batch * 7, 0.0);
        x.rows = batch;
        assert_eq!(trace.matrix("x", r, batch, 7), x, "{what}: gather");

        let mlp = twin(&students[r]);
        let f = oracle(activation);
        let mut inputs = vec![x.clone()];
        let mut kept = Vec::new();
        for l in 0..layers {
            let (name, out) = (format!("student.l{l}"), sizes[l + 1]);
            let z = matmul(&inputs[l], &mlp.weights[l], false, true).plus_bias(&mlp.biases[l]);
            let n = sizes[l] + 1;
            let output = trace.tensor(&format!("{name}.output"), r, batch, out);
            match l + 1 < layers {
                true => hold(&format!("{what}: {name}"), &output, &f.forward_bounded(&z, n), 1),
                false => hold(&format!("{what}: {name}"), &output, &z, n),
            }
            if l + 1 < layers && activation.needs_pre_activation() {
                let pre = trace.tensor(&format!("{name}.pre_activation"), r, batch, out);
                hold(&format!("{what}: {name} kept"), &pre, &z, n);
                kept.push(Matrix::from_f32(batch, out, &pre));
            }
            inputs.push(Matrix::from_f32(batch, out, &output));
        }
        let live = |m: &Matrix| Matrix::new(rows, m.cols, m.data[..rows * m.cols].to_vec());
        let (z, v) = (live(&inputs[layers]), live(&trace.matrix("teacher.l1.output", r, batch, 5)));
        let labels: Vec<Option<usize>> = picked
            .iter()
            .map(|i| set.labels.as_ref().expect("labels")[*i])
            .map(|l| (l != data::UNLABELLED).then_some(l as usize))
            .collect();
        let expected = head(&LOSS).evaluate(&z, Some(&v), &labels);
        let d_logits = trace.matrix("d_logits", r, batch, 5);
        hold(&format!("{what}: head"), &live(&d_logits).to_f32(), &expected.d_z, 1);
        assert!(d_logits.data[rows * 5..].iter().all(|d| d.to_bits() == 0), "{what}: rows past the batch");

        let mut d_z = d_logits;
        for l in (0..layers).rev() {
            let (d_w, d_b) = (&gradients[r].layers[l].weight, &gradients[r].layers[l].bias);
            hold(&format!("{what}: d_weight {l}"), d_w, &matmul(&d_z, &inputs[l], true, false), batch);
            hold(&format!("{what}: d_bias {l}"), d_b, &column_sums(&d_z), batch);
            if l == 0 {
                break;
            }
            let d_x = matmul(&d_z, &mlp.weights[l], false, false).to_rounded(sizes[l + 1]);
            let slope = |i: usize| match activation {
                Activation::Tanh => {
                    let y = Rounded::exact(inputs[l].data[i]);
                    Rounded::exact(1.0) - y * y
                }
                Activation::Gelu => f.derivative_rounded(Rounded::exact(kept[l - 1].data[i])),
                _ => f.derivative_rounded(Rounded::exact(inputs[l].data[i])),
            };
            let expected: Vec<Rounded> = d_x.iter().enumerate().map(|(i, d)| *d * slope(i)).collect();
            let device = trace.tensor(&format!("student.l{l}.d_input"), r, batch, sizes[l]);
            let expected = Bounded::from_rounded(batch, sizes[l], &expected);
            hold(&format!("{what}: d_input {l}"), &device, &expected, 1);
            d_z = Matrix::from_f32(batch, sizes[l], &device);
        }

        // Stage by stage proves each dispatch; that they are wired rightly shows only as a whole.
        let v = twin(&teacher_weights).forward(&live(&x)).logits().clone();
        let own = mlp.forward(&live(&x));
        let exact = mlp.backward(&own, &head(&LOSS).evaluate(own.logits(), Some(&v), &labels).d_z.value);
        for (l, layer) in gradients[r].layers.iter().enumerate() {
            close(&format!("{what}: d_weight {l} as a whole"), &layer.weight, &exact.d_weights[l].data);
            close(&format!("{what}: d_bias {l} as a whole"), &layer.bias, &exact.d_biases[l]);
        }
    }
}

/// Relative in the norm: a few roundings in each of some ten dispatches, none of them cancelling much.
#[track_caller]
fn close(what: &str, device: &[f32], exact: &[f64]) {
    let norm = exact.iter().map(|x| x * x).sum::<f64>().sqrt();
    let off = device.iter().zip(exact).map(|(d, x)| (f64::from(*d) - x).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 0.0 && off <= 100.0 * reference::gamma(1) * norm, "{what}: off by {off:e} of {norm:e}");
}

#[test]
fn gradients_of_whole_networks_match_the_reference() {
    for activation in [Activation::Relu, Activation::Tanh, Activation::Gelu, Activation::Identity] {
        for (replicas, rows) in [(1, 13), (3, 13), (1, 6), (3, 1)] {
            whole_network(activation, &[7, 11, 6, 5], replicas, rows);
        }
        whole_network(activation, &[7, 5], 3, 13);
        whole_network(activation, &[7, 1, 65, 5], 1, 13);
    }
}

/// One student of the demo's size, a teacher, and both on the first rows of optdigits.
fn digits(rows: usize) -> Dataset {
    let train = data::optdigits().expect("embedded data").train;
    train.select(&(0..rows as u32).collect::<Vec<_>>())
}

fn recipe(optimizer: Optimizer, steps: u64) -> Recipe {
    Recipe {
        batch: 64,
        accumulate: 1,
        length: Length::Steps(steps),
        optimizer,
        shuffle: true,
        log_every: 1,
        guard: Guard::default(),
        features: Vec::new(),
        regularize: Default::default(),
    }
}

fn teacher(gpu: &Gpu) -> Mlp {
    Mlp::upload(gpu, "teacher", &[weights(&[64, 40, 10], Activation::Relu, 77)]).expect("a teacher")
}

fn replica(seed: u64) -> Replica {
    replica_with(seed, LOSS)
}

fn replica_with(seed: u64, loss: Loss) -> Replica {
    let student = Weights::init(&[64, 32, 10], Activation::Relu, Initializer::He, seed).expect("weights");
    Replica { seed, lr: 0.01, loss, schedules: Schedules::default(), student }
}

const ADAM: Adam = Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.01, decoupled: true };

/// Losses of each row of metrics, and the trained students.
fn train(
    gpu: &Gpu,
    set: &Dataset,
    teacher: &Teacher,
    recipe: Recipe,
    replicas: Vec<Replica>,
) -> (Vec<[f64; 4]>, Vec<Weights>) {
    let mut run = Run::new(gpu, set, Rows::default(), teacher, recipe, replicas).expect("a run");
    let mut log = Vec::new();
    let students = run
        .train(|row| {
            log.push([row.hard_loss, row.soft_loss, row.accuracy, row.agreement]);
            Ok(())
        })
        .expect("a training");
    (log, students)
}

#[test]
fn ten_steps_of_a_distillation_match_the_reference() {
    first_steps([
        (
            LOSS,
            Optimizer::Adam(ADAM),
            Rule::Adam {
                beta1: ADAM.beta_1,
                beta2: ADAM.beta_2,
                epsilon: ADAM.epsilon,
                weight_decay: ADAM.weight_decay,
                decoupled: true,
                convention: Convention::PyTorch,
            },
        ),
        (LOSS, SGD, NESTEROV),
    ]);
}

#[test]
fn ten_steps_of_each_loss_match_the_reference() {
    first_steps(Soft::kinds().into_iter().map(|soft| (Loss { soft, ..LOSS }, SGD, NESTEROV)));
}

const NESTEROV: Rule =
    Rule::Sgd { momentum: 0.5, nesterov: true, weight_decay: 0.0, convention: Convention::PyTorch };

/// The losses, hits and weights of ten steps against the reference's own.
fn first_steps(cases: impl IntoIterator<Item = (Loss, Optimizer, Rule)>) {
    let (gpu, set) = (open(), digits(500));
    let network = teacher(&gpu);
    let mut raw = vec![0.0; set.rows() * 64];
    set.read_rows(&(0..set.rows() as u32).collect::<Vec<_>>(), &mut raw).expect("rows");
    let x = Matrix::from_f32(set.rows(), 64, &raw).map(|x| x * f64::from(set.normalisation.scale));
    let v = twin(&weights(&[64, 40, 10], Activation::Relu, 77)).forward(&x).logits().clone();
    let labels: Vec<Option<usize>> =
        set.labels.as_ref().expect("labels").iter().map(|l| Some(*l as usize)).collect();
    for (loss, optimizer, rule) in cases {
        let needs_teacher = loss.soft.loss.needs_teacher();
        let teacher = if needs_teacher { Teacher::Live(network.clone()) } else { Teacher::None };
        let what = format!("{rule:?}, {}", loss.soft.text());
        let (log, students) = train(&gpu, &set, &teacher, recipe(optimizer, 10), vec![replica_with(3, loss)]);
        let teacher_logits = needs_teacher.then_some(&v);
        let transfer = reference::train::TransferSet { x: &x, labels: &labels, teacher_logits };
        // 500 rows are seven batches of 64 and one of 52; then the next epoch's order.
        let batches: Vec<Vec<usize>> = (0..2)
            .flat_map(|epoch| {
                let order = limbeck::rng::permutation(3, epoch, 500);
                let order: Vec<usize> = order.into_iter().map(|i| i as usize).collect();
                order.chunks(64).map(<[usize]>::to_vec).collect::<Vec<_>>()
            })
            .take(10)
            .collect();
        assert_eq!(batches[7].len(), 52, "a short last batch is among them");
        let mut mlp = twin(&replica(3).student);
        let mut state = reference::Optimizer::new(rule);
        let expected =
            reference::train::distill(&mut mlp, &mut state, 0.01, &head(&loss), &transfer, &batches);
        assert_eq!(log.len(), 10);
        for (i, (got, want)) in log.iter().zip(&expected).enumerate() {
            let rows = batches[i].len() as f64;
            let wants = [want.hard_loss, want.soft_loss];
            for (got, want) in got.iter().zip(wants) {
                assert!((got - want).abs() <= 1e-5 * want, "{what}, step {i}: {got}, expected {want}");
            }
            // A hit is a whole row.
            let hits = [(got[2], want.correct), (got[3], want.agrees)];
            for (got, want) in hits {
                assert!((got * rows - want as f64).abs() < 1e-3, "{what}, step {i}: {got} of {rows}, {want}");
            }
        }
        let trained = twin(&students[0]);
        for l in 0..2 {
            let start = &twin(&replica(3).student).weights[l].data;
            let moved: f64 =
                mlp.weights[l].data.iter().zip(start).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            let off: f64 = mlp.weights[l]
                .data
                .iter()
                .zip(&trained.weights[l].data)
                .map(|(a, b)| (a - b).powi(2))
                .sum::<f64>()
                .sqrt();
            assert!(moved > 0.0 && off < 1e-3 * moved, "{what}, layer {l}: off by {off} of {moved}");
        }
    }
}

#[test]
fn runs_repeat_to_the_bit() {
    let set = digits(300);
    let run = || {
        let gpu = open();
        let teacher = Teacher::Live(teacher(&gpu));
        train(&gpu, &set, &teacher, recipe(Optimizer::Adam(ADAM), 25), vec![replica(1), replica(2)])
    };
    let (first, second) = (run(), run());
    assert!(first.0.iter().flatten().all(|x| x.is_finite()));
    assert_eq!(bits(&first.0), bits(&second.0));
    assert_eq!(hashes(&first.1), hashes(&second.1));
}

fn bits(log: &[[f64; 4]]) -> Vec<u64> {
    log.iter().flatten().map(|x| x.to_bits()).collect()
}

fn hashes(students: &[Weights]) -> Vec<String> {
    students.iter().map(Weights::sha256).collect()
}

#[test]
fn a_replica_is_the_single_run_of_its_seed() {
    let (gpu, set) = (open(), digits(300));
    let teacher = Teacher::Live(teacher(&gpu));
    for optimizer in [Optimizer::Adam(ADAM), SGD] {
        let of = |replicas| train(&gpu, &set, &teacher, recipe(optimizer, 12), replicas);
        let odd = Replica { lr: 0.02, loss: Loss { temperature: 8.0, ..LOSS }, ..replica(6) };
        let (log, together) = of(vec![replica(4), odd.clone(), replica(4)]);
        let (log_alone, alone) = of(vec![replica(4)]);
        let (log_odd, odd_alone) = of(vec![odd]);
        let of_replica = |r: usize| -> Vec<[f64; 4]> { log.iter().skip(r).step_by(3).copied().collect() };
        for r in [0, 2] {
            assert_eq!(together[r].sha256(), alone[0].sha256(), "{optimizer:?}, replica {r}");
            assert_eq!(bits(&of_replica(r)), bits(&log_alone), "{optimizer:?}, replica {r}");
        }
        assert_eq!(together[1].sha256(), odd_alone[0].sha256(), "{optimizer:?}");
        assert_eq!(bits(&of_replica(1)), bits(&log_odd), "{optimizer:?}");
        assert_ne!(together[0].sha256(), together[1].sha256(), "another seed, another student");
    }
}

#[test]
fn a_live_teacher_and_its_cached_logits_give_the_same_bits() {
    let (gpu, set) = (open(), digits(300));
    let network = teacher(&gpu);
    let inference = Inference::record(&gpu, &network, &set, 64).expect("a forward pass");
    let cached = Teacher::Cached(inference.cache(&gpu).expect("logits"));
    let run = |teacher: &Teacher| {
        train(&gpu, &set, teacher, recipe(Optimizer::Adam(ADAM), 12), vec![replica(1), replica(2)])
    };
    let (cached, live) = (run(&cached), run(&Teacher::Live(network)));
    assert_eq!(bits(&cached.0), bits(&live.0));
    assert_eq!(hashes(&cached.1), hashes(&live.1));
    let (_, alone) =
        train(&gpu, &set, &Teacher::None, recipe(Optimizer::Adam(ADAM), 12), vec![replica(1), replica(2)]);
    assert_ne!(hashes(&alone), hashes(&live.1), "the teacher makes a difference");
}

#[test]
fn a_loss_that_is_no_longer_finite_ends_the_run() {
    let (gpu, set) = (open(), digits(128));
    let mut student = replica(1);
    student.student.layers[0].weight[5] = f32::NAN;
    let mut run =
        Run::new(&gpu, &set, Rows::default(), &Teacher::None, recipe(SGD, 5), vec![student]).expect("a run");
    let error = run.train(|_| Ok(())).expect_err("a NaN");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("step 1"), "{error}");
}
