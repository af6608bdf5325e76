//! Losses on hidden layers and regularisation in whole runs: the students that the reference trains, step for
//! step.

use limbeck::data::{Dataset, Elements};
use limbeck::distill::{Feature, Guard, Loss, Member, Optimizer, Regularize, Teacher};
use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels::dropout::Drop;
use limbeck::kernels::ensemble::Rule;
use limbeck::kernels::feature::Kind;
use limbeck::kernels::matmul::Activation;
use limbeck::mlp::Mlp;
use limbeck::mlp::weights::{Initializer, Weights};
use limbeck::reference::linalg::matmul;
use limbeck::reference::mlp::Gradients;
use limbeck::reference::{self, Convention, Matrix, SoftLoss, features};
use limbeck::train::{Length, Recipe, Replica, Rows, Run};
use limbeck::verify::dropout::kept;
use limbeck::verify::gather::moved;
use limbeck::verify::matmul::oracle;

const ROWS: usize = 23;
const BATCH: usize = 13;
const STEPS: usize = 5;
const LR: f64 = 0.05;
const NONE: Regularize = Regularize { dropout: 0.0, input_dropout: 0.0, max_norm: None, jitter: 0 };

fn set() -> Dataset {
    let x = (0..ROWS * 12).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let labels = (0..ROWS as u32).map(|i| i % 5).collect();
    Dataset::new("here", Elements::F32(x), vec![4, 3], Some(labels), Some(5)).expect("a set")
}

fn weights(sizes: &[usize], activation: Activation, seed: u64) -> Weights {
    Weights::init(sizes, activation, Initializer::Glorot, seed).expect("weights")
}

fn twin(weights: &Weights) -> reference::Mlp {
    let mut mlp = reference::Mlp::zeros(&weights.sizes(), oracle(weights.activation));
    for (l, layer) in weights.layers.iter().enumerate() {
        mlp.weights[l] = Matrix::from_f32(layer.outputs, layer.inputs, &layer.weight);
    }
    mlp
}

fn sgd() -> reference::Optimizer {
    let convention = Convention::PyTorch;
    reference::Optimizer::new(reference::Rule::Sgd {
        momentum: 0.5,
        nesterov: false,
        weight_decay: 0.0,
        convention,
    })
}

fn add(sum: &mut Option<Matrix>, d: &Matrix) {
    match sum {
        Some(sum) => sum.data.iter_mut().zip(&d.data).for_each(|(s, d)| *s += d),
        None => *sum = Some(d.clone()),
    }
}

/// What each layer's input is multiplied by in a step from 0.
fn masks(
    regularize: Regularize,
    seed: u64,
    step: usize,
    rows: usize,
    widths: &[usize],
) -> Vec<Option<Matrix>> {
    let of_layer = |(layer, width): (usize, &usize)| {
        let rate = if layer == 0 { regularize.input_dropout } else { regularize.dropout };
        let drop = Drop { rate, layer };
        let kept = kept(seed, step as u32 + 1, drop, [rows, *width], width.div_ceil(4));
        let scale = 1.0 / (1.0 - rate);
        let mask = kept.map(|k| if k { scale } else { 0.0 }).collect();
        (rate > 0.0).then(|| Matrix::new(rows, *width, mask))
    };
    widths[..widths.len() - 1].iter().enumerate().map(of_layer).collect()
}

/// The weights after some steps, and each step's weighted feature loss, in f64.
fn expected(
    start: &Weights,
    teacher: &reference::Mlp,
    losses: &[Feature],
    regularize: Regularize,
    seed: u64,
) -> (reference::Mlp, Vec<f64>) {
    let set = set();
    let Elements::F32(x) = &set.x else { panic!("f32 rows") };
    let all = Matrix::from_f32(ROWS, 12, x);
    let mut student = twin(start);
    let mut optimizer = sgd();
    let width = |mlp: &reference::Mlp, layer: usize| mlp.layers[layer];
    // What a run starts its regressors from.
    let mut regressors: Vec<_> = losses
        .iter()
        .map(|f| [width(&student, f.student), width(teacher, f.teacher)])
        .map(|sizes| (twin(&weights(&sizes, Activation::Identity, 0)), sgd()))
        .collect();
    let head = reference::Head {
        hard_weight: 0.4,
        soft_weight: 0.6,
        temperature: 3.0,
        label_smoothing: 0.0,
        soft_loss: SoftLoss::ForwardKl,
        standardise: false,
    };
    let mut seen = Vec::new();
    for step in 0..STEPS {
        let first = step % 2 * BATCH;
        let rows: Vec<usize> = (first..ROWS.min(first + BATCH)).collect();
        let mut x = all.gather(&rows);
        if let Some(jitter) = regularize.jitter(&set.shape).expect("images") {
            for row in 0..rows.len() {
                let whole = x.row(row).to_vec();
                let from = |j| moved(jitter, seed, step as u32 + 1, row, j).map_or(0.0, |j| whole[j]);
                let moved: Vec<f64> = (0..whole.len()).map(from).collect();
                x.row_mut(row).copy_from_slice(&moved);
            }
        }
        let labels: Vec<Option<usize>> = rows.iter().map(|i| Some(i % 5)).collect();
        let masks = masks(regularize, seed, step, rows.len(), &student.layers);
        let (own, taught) = (student.forward_with(&x, masks), teacher.forward(&x));
        // Before dropout.
        let hidden = |layer: usize| own.pre_activations[layer - 1].map(|z| student.activation.forward(z));
        let d_logits = head.evaluate(own.logits(), Some(taught.logits()), &labels).d_z.value;
        let mut d_hidden = vec![None; student.layers.len() - 2];
        let mut loss = 0.0;
        let mean =
            |l: &features::FeatureLoss| l.loss.iter().map(|l| l.value).sum::<f64>() / rows.len() as f64;
        let mut updates: Vec<Option<Gradients>> = Vec::new();
        for (feature, (regressor, _)) in losses.iter().zip(&regressors) {
            let (h, target) = (&hidden(feature.student), &taught.inputs[feature.teacher]);
            let d_h = &mut d_hidden[feature.student - 1];
            updates.push(match feature.kind {
                Kind::Hint => {
                    let forward = regressor.forward(h);
                    let hint = features::hint(forward.logits(), target, feature.weight);
                    loss += feature.weight * mean(&hint);
                    let gradients = regressor.backward(&forward, &hint.d.value);
                    add(d_h, &gradients.d_input);
                    Some(gradients)
                }
                Kind::Similarity => {
                    let gram = |h: &Matrix| matmul(h, h, false, true).value;
                    let similarity = features::similarity(&gram(h), &gram(target), feature.weight);
                    loss += feature.weight * mean(&similarity);
                    let d = &similarity.d.value;
                    add(d_h, &matmul(d, h, false, false).value);
                    add(d_h, &matmul(d, h, true, false).value);
                    None
                }
            });
        }
        let gradients = student.backward_with(&own, &d_logits, &d_hidden);
        optimizer.step(LR, &mut student.parameters_mut(), &gradients.tensors());
        let hidden = student.weights.len() - 1;
        for weight in student.weights[..hidden].iter_mut().filter(|_| regularize.max_norm.is_some()) {
            for row in weight.data.chunks_exact_mut(weight.cols) {
                let limit = regularize.max_norm.unwrap_or(f64::INFINITY);
                let norm = row.iter().map(|w| w * w).sum::<f64>().sqrt();
                row.iter_mut().for_each(|w| *w *= (limit / norm).min(1.0));
            }
        }
        for ((regressor, optimizer), gradients) in regressors.iter_mut().zip(updates) {
            if let Some(gradients) = gradients {
                optimizer.step(LR, &mut regressor.parameters_mut(), &gradients.tensors());
            }
        }
        seen.push(loss);
    }
    (student, seen)
}

fn recipe(steps: u64, features: Vec<Feature>, regularize: Regularize) -> Recipe {
    Recipe {
        batch: BATCH,
        accumulate: 1,
        length: Length::Steps(steps),
        optimizer: Optimizer::Sgd { momentum: 0.5, nesterov: false, weight_decay: 0.0 },
        shuffle: false,
        log_every: 1,
        guard: Guard::default(),
        features,
        regularize,
    }
}

/// One order for all, or seeds of their own.
fn seed(regularize: Regularize, replica: usize) -> u64 {
    if regularize == NONE { 0 } else { 3 + ((replica as u64) << 33) }
}

fn hold(what: &str, activation: Activation, losses: &[Feature], regularize: Regularize, replicas: u64) {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
    let set = set();
    let teacher = weights(&[12, 9, 8, 5], Activation::Tanh, 99);
    let starts: Vec<Weights> = (0..replicas).map(|seed| weights(&[12, 6, 10, 5], activation, seed)).collect();
    let recipe = recipe(STEPS as u64, losses.to_vec(), regularize);
    let replica = |(r, student): (usize, &Weights)| Replica {
        seed: seed(regularize, r),
        lr: LR,
        loss: Loss { temperature: 3.0, hard_weight: 0.4, soft_weight: 0.6, ..Loss::HARD },
        schedules: Default::default(),
        student: student.clone(),
    };
    let mlp = Mlp::upload(&gpu, "teacher", std::slice::from_ref(&teacher)).expect("memory");
    let replicas = starts.iter().enumerate().map(replica).collect();
    let mut run =
        Run::new(&gpu, &set, Rows::default(), &Teacher::Live(mlp), recipe, replicas).expect("a run");
    let mut seen = vec![Vec::new(); starts.len()];
    run.advance(STEPS as u64, |row| {
        // An epoch ends too; its row is a mean.
        if row.span == limbeck::train::Span::Interval {
            seen[row.replica].push(row.feature_loss);
        }
        Ok(())
    })
    .expect("trained");
    let students = run.students().read_blocking(&gpu).expect("weights");
    for (r, start) in starts.iter().enumerate() {
        let (mut exact, exact_losses) =
            expected(start, &twin(&teacher), losses, regularize, seed(regularize, r));
        let device: Vec<f64> = students[r]
            .layers
            .iter()
            .flat_map(|l| l.weight.iter().chain(&l.bias))
            .map(|w| f64::from(*w))
            .collect();
        let exact: Vec<f64> = exact.parameters_mut().concat();
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let off = norm(&mut device.iter().zip(&exact).map(|(d, e)| d - e)) / norm(&mut exact.iter().copied());
        assert!(off < 2e-6, "{what} {activation:?}, replica {r}: weights off by {off:e}");
        assert_eq!(seen[r].len(), STEPS);
        for (step, (device, exact)) in seen[r].iter().zip(&exact_losses).enumerate() {
            assert!(
                (device - exact).abs() <= 1e-5 * exact.abs(),
                "{what}, step {step}: {device} and {exact}"
            );
        }
    }
}

#[test]
fn students_with_losses_on_hidden_layers_are_the_references() {
    let hint = |student, teacher| Feature { kind: Kind::Hint, student, teacher, weight: 0.7 };
    let similarity = |student, teacher| Feature { kind: Kind::Similarity, student, teacher, weight: 30.0 };
    for activation in [Activation::Relu, Activation::Tanh, Activation::Gelu] {
        let all = [hint(2, 1), similarity(2, 2), similarity(1, 1), hint(2, 2)];
        hold("hint", activation, &[hint(1, 2)], NONE, 2);
        hold("similarity", activation, &[similarity(2, 1)], NONE, 2);
        hold("all", activation, &all, NONE, 2);
        hold(
            "all with dropout",
            activation,
            &all,
            Regularize { dropout: 0.4, input_dropout: 0.2, ..NONE },
            2,
        );
    }
}

#[test]
fn students_with_dropout_are_the_references() {
    for activation in [Activation::Relu, Activation::Tanh, Activation::Gelu] {
        for replicas in [1, 2] {
            hold(
                "hidden",
                activation,
                &[],
                Regularize { dropout: 0.5, input_dropout: 0.0, ..NONE },
                replicas,
            );
            hold(
                "inputs",
                activation,
                &[],
                Regularize { dropout: 0.0, input_dropout: 0.2, ..NONE },
                replicas,
            );
            hold("both", activation, &[], Regularize { dropout: 0.3, input_dropout: 0.6, ..NONE }, replicas);
        }
    }
}

#[test]
fn students_with_max_norm_are_the_references() {
    let [short, long] = [0.8, 1.4].map(Some);
    for activation in [Activation::Relu, Activation::Tanh, Activation::Gelu] {
        hold("short", activation, &[], Regularize { max_norm: short, ..NONE }, 2);
        hold("long", activation, &[], Regularize { max_norm: long, dropout: 0.4, ..NONE }, 1);
    }
}

#[test]
fn students_of_moved_images_are_the_references() {
    let similarity = Feature { kind: Kind::Similarity, student: 1, teacher: 2, weight: 30.0 };
    for replicas in [1, 2] {
        hold("moved", Activation::Relu, &[similarity], Regularize { jitter: 2, ..NONE }, replicas);
    }
    let all = Regularize { dropout: 0.3, input_dropout: 0.2, max_norm: Some(1.2), jitter: 1 };
    hold("all of it", Activation::Gelu, &[similarity], all, 2);
}

#[test]
fn rows_that_are_no_images_and_logits_of_others_are_refused() {
    let jitter = |pixels, shape: &[usize]| Regularize { jitter: pixels, ..NONE }.jitter(shape);
    assert!(jitter(2, &[3, 4]).is_ok() && jitter(0, &[12]).is_ok() && jitter(2, &[4, 3, 4]).is_ok());
    for (pixels, shape) in [(1, vec![12]), (3, vec![3, 4]), (1, vec![3, 32, 32]), (1, vec![2, 3, 4, 5])] {
        let error = jitter(pixels, &shape).expect_err("no image");
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
    let set = set();
    let recipe = recipe(1, Vec::new(), Regularize { jitter: 1, ..NONE });
    let replica = Replica {
        seed: 0,
        lr: LR,
        loss: Loss { soft_weight: 1.0, ..Loss::HARD },
        schedules: Default::default(),
        student: weights(&[12, 6, 5], Activation::Relu, 1),
    };
    let logits = vec![0.5; ROWS * 5];
    let member = Member::cached(&gpu, 5, logits, None).expect("memory");
    let teacher = Teacher::Ensemble(vec![member], Rule::Arithmetic);
    let error =
        Run::new(&gpu, &set, Rows::default(), &teacher, recipe, vec![replica]).err().expect("refused");
    assert!(error.exit_code() == 2 && error.to_string().contains("logits"), "{error}");
}

#[test]
fn layers_that_there_are_not_and_teachers_that_show_none_are_refused() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
    let set = set();
    let run = |teacher: &Teacher, student, layer, weight| {
        let recipe = recipe(1, vec![Feature { kind: Kind::Hint, student, teacher: layer, weight }], NONE);
        let replica = Replica {
            seed: 0,
            lr: LR,
            loss: Loss { soft_weight: 1.0, ..Loss::HARD },
            schedules: Default::default(),
            student: weights(&[12, 6, 5], Activation::Relu, 1),
        };
        let run = Run::new(&gpu, &set, Rows::default(), teacher, recipe, vec![replica]);
        run.err().map(|e| (e.exit_code(), e.to_string())).unwrap_or_default()
    };
    let network = weights(&[12, 9, 5], Activation::Relu, 2);
    let live = Teacher::Live(Mlp::upload(&gpu, "teacher", &[network]).expect("memory"));
    assert_eq!(run(&live, 1, 1, 1.0), (0, String::new()));
    for (student, teacher, weight, words) in
        [(2, 1, 1.0, "student"), (1, 2, 1.0, "teacher"), (0, 1, 1.0, "student"), (1, 1, 0.0, "weight")]
    {
        let (code, text) = run(&live, student, teacher, weight);
        assert_eq!(code, 2, "{text}");
        assert!(text.contains(words), "{text}");
    }
    let (code, text) = run(&Teacher::None, 1, 1, 1.0);
    assert_eq!(code, 2, "{text}");
}
