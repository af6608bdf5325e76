//! Gradient accumulation: micro-batches against the whole batch.

use limbeck::distill::{Feature, Guard, Loss, Optimizer};
use limbeck::kernels::feature::Kind;
use limbeck::kernels::matmul::Activation;
use limbeck::mlp::weights::{Initializer, Weights};
use limbeck::train::{Length, Recipe, Replica, Row, Rows, Run, Span};

use crate::bench::{Bench, fails, succeeds};
use crate::same_bits::{ADAM, SGD, Shop};

const STEPS: u64 = 30;
const BATCH: usize = 128;

fn recipe(optimizer: Optimizer, clip: Option<f64>, accumulate: usize) -> Recipe {
    Recipe {
        batch: BATCH,
        accumulate,
        length: Length::Steps(STEPS),
        optimizer,
        shuffle: true,
        log_every: 3,
        guard: Guard { clip, skip: false },
        features: Vec::new(),
        regularize: Default::default(),
    }
}

fn replica(seed: u64) -> Replica {
    Replica {
        seed,
        lr: 0.01,
        loss: Loss { temperature: 3.0, hard_weight: 0.3, soft_weight: 0.7, ..Loss::HARD },
        schedules: Default::default(),
        student: Weights::init(&[64, 12, 10], Activation::Relu, Initializer::He, seed).expect("weights"),
    }
}

/// 300 rows: of three batches of 128 the last has 44, so two of its micro-batches of 32 are not full.
fn rows() -> Rows {
    Rows { walked: vec![(0..300).collect()], ..Rows::default() }
}

type Ended = (Vec<f32>, Vec<f32>, Vec<Row>);

fn train(shop: &Shop, recipe: Recipe, replicas: u64) -> Ended {
    let replicas = (0..replicas).map(replica).collect();
    let mut run = Run::new(&shop.gpu, &shop.data, rows(), &shop.teacher, recipe, replicas).expect("a run");
    let start = run.state_blocking().expect("a state").students().to_vec();
    let mut rows = Vec::new();
    let keep = |row: &Row| {
        rows.push(*row);
        Ok(())
    };
    run.advance_until(STEPS, || false, keep).expect("steps");
    (start, run.state_blocking().expect("a state").students().to_vec(), rows)
}

fn norm(of: impl Iterator<Item = f64>) -> f64 {
    of.map(|x| x * x).sum::<f64>().sqrt()
}

fn difference(a: &[f32], b: &[f32]) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)))
}

/// An element of a gradient is a sum over the n rows of a batch. In whatever order f32 takes it, it is off
/// by at most n u of the sum of its terms' sizes, u = 2^-24: so two orders are at most 2 n u apart, and T
/// steps 2 n u T of the way that the weights have gone. A term that is lost or weighed wrongly is 1 / n.
#[test]
fn micro_batches_are_the_whole_batch_within_the_bound_of_their_sums() {
    let shop = Shop::new(1);
    let bound = 2.0 * BATCH as f64 * 2.0_f64.powi(-24) * STEPS as f64;
    for (optimizer, replicas, clip) in
        [(SGD, 1, None), (ADAM, 1, None), (SGD, 3, Some(0.5)), (ADAM, 3, Some(0.5))]
    {
        let (start, whole, whole_rows) = train(&shop, recipe(optimizer, clip, 1), replicas);
        for accumulate in [4, 64] {
            let (_, parts, rows) = train(&shop, recipe(optimizer, clip, accumulate), replicas);
            let apart = difference(&parts, &whole) / difference(&whole, &start);
            println!(
                "{optimizer:?} x {replicas}, {accumulate} parts: {apart:.2e} of the way, bound {bound:.2e}"
            );
            assert!(apart < bound, "{optimizer:?} x {replicas}, {accumulate} parts: {apart} above {bound}");
            assert_eq!(rows.len(), whole_rows.len());
            for (a, b) in rows.iter().zip(&whole_rows) {
                assert_eq!((a.span, a.replica, a.step), (b.span, b.replica, b.step));
                let values = |row: &Row| {
                    let ratio = row.gradient_ratio.expect("a hard part");
                    [row.loss, row.hard_loss, row.soft_loss, ratio]
                };
                for (a, b) in values(a).into_iter().zip(values(b)) {
                    assert!((a - b).abs() < bound * b.abs(), "{a} against {b}");
                }
            }
            // Each step's rows are seen once.
            let epochs = rows.iter().filter(|row| row.span == Span::Epoch).count();
            assert_eq!(epochs as u64, STEPS / 3 * replicas);
        }
    }
}

#[test]
fn the_same_run_twice_has_the_same_bits() {
    let shop = Shop::new(1);
    let end = || train(&shop, recipe(ADAM, Some(0.5), 4), 3).1;
    assert_eq!(
        end().iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
        end().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    );
}

/// One batch, of fewer rows than asked for.
#[test]
fn fewer_rows_than_a_batch_leave_micro_batches_empty() {
    let shop = Shop::new(1);
    let end = |accumulate| {
        let rows = Rows { walked: vec![(0..20).collect()], ..Rows::default() };
        let recipe = recipe(SGD, None, accumulate);
        let mut run =
            Run::new(&shop.gpu, &shop.data, rows, &shop.teacher, recipe, vec![replica(0)]).expect("a run");
        run.advance(STEPS, |_| Ok(())).expect("steps");
        run.state_blocking().expect("a state").students().to_vec()
    };
    let (whole, parts) = (end(1), end(4));
    let apart = difference(&parts, &whole) / norm(whole.iter().map(|x| f64::from(*x)));
    assert!(apart < 2.0 * 20.0 * 2.0_f64.powi(-24) * STEPS as f64, "{apart}");
}

/// A row that is not finite in the third micro-batch of the second step: found, named, and where asked for
/// left out.
#[test]
fn a_fault_in_a_micro_batch_is_found() {
    let mut shop = Shop::new(1);
    let mut x = vec![0f32; 300 * 64];
    let all: Vec<u32> = (0..300).collect();
    shop.data.read_rows(&all, &mut x).expect("rows");
    x[(128 + 70) * 64] = f32::NAN;
    let labels = shop.data.labels.clone().map(|l| l[..300].to_vec());
    shop.data =
        limbeck::data::Dataset::new("bad", limbeck::data::Elements::F32(x), vec![64], labels, Some(10))
            .expect("data");
    let run = |skip| {
        let recipe = Recipe { shuffle: false, guard: Guard { clip: None, skip }, ..recipe(SGD, None, 4) };
        Run::new(&shop.gpu, &shop.data, rows(), &shop.teacher, recipe, vec![replica(0)]).expect("a run")
    };
    let mut stops = run(false);
    let start = stops.state_blocking().expect("a state");
    stops.advance(STEPS, |_| Ok(())).expect_err("a fault");
    assert_eq!(stops.fault(), Some(2));
    let fault = stops.first_fault(&start, 2).expect("traced").expect("a fault");
    assert_eq!((fault.step, fault.bad, fault.tensor.as_str()), (2, 1, "x"));

    let mut skips = run(true);
    let mut skipped = 0;
    let count = |row: &Row| {
        skipped += row.skipped;
        Ok(())
    };
    skips.advance(STEPS, count).expect("a run without its second steps");
    assert_eq!(skipped, STEPS / 3);
    assert!(skips.state_blocking().is_ok());
}

#[test]
fn what_does_not_part_is_refused() {
    let shop = Shop::new(1);
    let hint = Feature { kind: Kind::Hint, student: 1, teacher: 1, weight: 0.5 };
    let cases = [
        Recipe { accumulate: 3, ..recipe(SGD, None, 1) },
        Recipe { accumulate: 0, ..recipe(SGD, None, 1) },
        Recipe { accumulate: 128, ..recipe(SGD, None, 1) },
        Recipe { features: vec![hint], ..recipe(SGD, None, 4) },
    ];
    for recipe in cases {
        let found = Run::new(&shop.gpu, &shop.data, rows(), &shop.teacher, recipe, vec![replica(0)]);
        let error = found.err().expect("refused");
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains("accumul"), "{error}");
    }
}

/// From the outside, and resumed.
#[test]
fn an_accumulating_run_resumes_to_the_same_bits() {
    let bench = Bench::new();
    let said = fails(&mut bench.train("odd", &["--steps", "60", "--accumulate", "5"]), 2);
    assert!(said.contains("accumul") && said.contains("64"), "{said}");
    // Before any teacher is read.
    let given: Vec<_> = bench.train("none", &[]).get_args().skip(1).map(std::ffi::OsStr::to_owned).collect();
    let mut distill = crate::bench::limbeck();
    distill.arg("distill").args(given).args(["--teacher", "none", "--hint", "1:1", "--accumulate", "4"]);
    let said = fails(&mut distill, 2);
    assert!(said.contains("accumul") && said.contains("--hint"), "{said}");
    let fixed = ["--steps", "60", "--log-every", "20", "--accumulate", "4"];
    succeeds(&mut bench.train("whole", &fixed));
    succeeds(bench.train("parts", &fixed).args(["--max-steps", "31"]));
    succeeds(bench.train("parts", &fixed).arg("--resume"));
    bench.same("whole", "parts");
}
