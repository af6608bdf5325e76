//! Gradients that are too long or not finite: named, skipped, shortened.

use limbeck::data::{Dataset, Elements};
use limbeck::distill::{Guard, Loss, Optimizer, Teacher};
use limbeck::error::Result;
use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels::matmul::Activation;
use limbeck::mlp::weights::{Initializer, Weights};
use limbeck::train::fault::Fault;
use limbeck::train::{Length, Recipe, Replica, Row, Rows, Run};

use crate::bench::{Bench, fails, succeeds};

/// 64 rows of 6 numbers in 3 classes; a bad row 40 is in the third batch of 16.
fn data(bad: bool) -> Dataset {
    let x = (0..64 * 6).map(|i| if bad && i / 6 == 40 { f32::NAN } else { (i % 17) as f32 / 17.0 }).collect();
    let labels = (0..64).map(|i| i % 3).collect();
    Dataset::new("here", Elements::F32(x), vec![6], Some(labels), Some(3)).expect("a set")
}

fn run<'a>(gpu: &'a Gpu, data: &'a Dataset, guard: Guard, lr: f64) -> Run<'a> {
    let recipe = Recipe {
        batch: 16,
        accumulate: 1,
        length: Length::Steps(120),
        optimizer: Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
        shuffle: false,
        log_every: 4,
        guard,
        features: Vec::new(),
        regularize: Default::default(),
    };
    let student = Weights::init(&[6, 5, 3], Activation::Relu, Initializer::He, 1).expect("weights");
    let replica = Replica { seed: 1, lr, loss: Loss::HARD, schedules: Default::default(), student };
    Run::new(gpu, data, Rows::default(), &Teacher::None, recipe, vec![replica]).expect("a run")
}

fn rows(run: &mut Run<'_>) -> Result<Vec<Row>> {
    rows_to(run, 12)
}

fn rows_to(run: &mut Run<'_>, step: u64) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    run.advance(step, |row| {
        rows.push(*row);
        Ok(())
    })?;
    Ok(rows)
}

#[test]
fn a_fault_is_named_with_step_tensor_and_layer() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
    let (bad, good) = (data(true), data(false));
    let mut run_of_bad = run(&gpu, &bad, Guard::default(), 0.1);
    let start = run_of_bad.state_blocking().expect("a state");
    let error = rows(&mut run_of_bad).expect_err("row 40 is in the third batch");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("step 3"), "{error}");
    let fault = run_of_bad.first_fault(&start, 3).expect("traced").expect("a fault");
    // 6 features are padded to 8.
    let expected = Fault { step: 3, dispatch: "gather".into(), tensor: "x".into(), bad: 6, of: 16 * 8 };
    assert_eq!((fault.layer(), fault), (None, expected));

    // Weights that overflow in the forward pass.
    let mut huge = run(&gpu, &good, Guard::default(), 0.1);
    huge.students().layers[0].weight.write(&gpu, &[1e30_f32; 30]).expect("written");
    huge.students().layers[1].weight.write(&gpu, &[1e30_f32; 15]).expect("written");
    let start = huge.state_blocking().expect("a state");
    let error = rows(&mut huge).expect_err("an overflow");
    assert!(error.to_string().contains("step 1"), "{error}");
    let fault = huge.first_fault(&start, 1).expect("traced").expect("a fault");
    assert_eq!(
        (fault.step, fault.layer(), fault.tensor.as_str()),
        (1, Some(1), "student.l1.output"),
        "{fault}"
    );

    // An update that spoils the weights shows in the step after, and is named all the same.
    let mut wild = run(&gpu, &good, Guard::default(), 1e38);
    let start = wild.state_blocking().expect("a state");
    let error = rows(&mut wild).expect_err("an overflow");
    assert!(error.to_string().contains("step 2"), "{error}");
    let fault = wild.first_fault(&start, 2).expect("traced").expect("a fault");
    assert!(fault.step <= 2 && fault.to_string().contains("written by `"), "{fault}");

    // Without a fault there is nothing to find.
    let mut run_of_good = run(&gpu, &good, Guard::default(), 0.1);
    let start = run_of_good.state_blocking().expect("a state");
    rows(&mut run_of_good).expect("finite");
    assert_eq!(run_of_good.first_fault(&start, 3).expect("traced"), None);
}

#[test]
fn a_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
    let (bad, good) = (data(true), data(false));
    let skip = Guard { clip: None, skip: true };
    let (mut with, mut without) = (run(&gpu, &bad, skip, 0.1), run(&gpu, &good, skip, 0.1));
    let seen = rows(&mut with).expect("skipped");
    // Four batches to an epoch, the third one is bad.
    assert_eq!(seen.iter().map(|r| r.skipped).collect::<Vec<_>>(), [1, 1, 1]);
    assert!(seen.iter().all(|r| r.loss.is_finite() && r.accuracy.is_finite()), "{seen:?}");
    // What is skipped changes nothing: two steps are those of the run without the bad row, and the
    // third leaves their weights as they are.
    let (mut two, mut three) = (run(&gpu, &good, skip, 0.1), run(&gpu, &bad, skip, 0.1));
    two.advance(2, |_| Ok(())).expect("steps");
    three.advance(3, |_| Ok(())).expect("steps");
    let arenas = |run: &mut Run<'_>| run.state_blocking().expect("a state").arenas;
    assert_eq!(arenas(&mut two), arenas(&mut three));
    // Where nothing is skipped, the guard changes no bit.
    let mut plain = run(&gpu, &good, Guard::default(), 0.1);
    rows(&mut plain).expect("finite");
    assert!(rows(&mut without).expect("finite").iter().all(|r| r.skipped == 0));
    assert_eq!(arenas(&mut plain), arenas(&mut without));
}

#[test]
fn a_run_that_would_skip_everything_stops() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
    let good = data(false);
    let mut hopeless = run(&gpu, &good, Guard { clip: None, skip: true }, 0.1);
    let student = hopeless.students().layers[1].bias.clone();
    student.write(&gpu, &[f32::NAN; 3]).expect("written");
    assert!(rows(&mut hopeless).expect("there is hope").is_empty(), "no row has a step");
    let error = rows_to(&mut hopeless, 120).expect_err("no step is left");
    assert!(error.to_string().contains("step 100"), "{error}");
}

#[test]
fn clipping_bounds_what_a_step_can_do() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
    let good = data(false);
    let moved = |clip| {
        let mut one = run(&gpu, &good, Guard { clip, skip: false }, 1.0);
        let before = one.state_blocking().expect("a state");
        one.advance(1, |_| Ok(())).expect("a step");
        let after = one.state_blocking().expect("a state");
        let pairs = before.students().iter().zip(after.students());
        pairs.map(|(a, b)| f64::from(b - a).powi(2)).sum::<f64>().sqrt()
    };
    // The first step of rate 1 moves the weights by the gradient.
    let norm = moved(None);
    assert!((moved(Some(norm / 4.0)) / norm - 0.25).abs() < 1e-5, "{norm}");
    assert!((moved(Some(norm * 4.0)) / norm - 1.0).abs() < 1e-12, "a shorter one stays as it is");
}

#[test]
fn the_binary_names_the_fault_and_leaves_the_last_good_checkpoint() {
    let bench = Bench::new();
    let run = ["--steps", "200", "--optimizer", "sgd", "--checkpoint-every", "1", "--log-every", "20"];
    // So high a rate that the weights overflow after some steps.
    let said = fails(bench.train("run", &run).args(["--lr", "1e18"]), 1);
    for word in ["step ", "replica 0", "it began with `", "layer ", "written by `", "--clip-norm"] {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
    let record = bench.json("run/run.json");
    assert_eq!((&record["status"], &record["exit_code"]), (&"failed".into(), &1.into()));
    // From what is left a run goes on: with another rate.
    assert!(!bench.checkpoints("run").is_empty());
    succeeds(bench.train("calm", &run).args(["--lr", "0.05", "--clip-norm", "1", "--on-nonfinite", "skip"]));
    assert!(bench.text("calm/metrics.jsonl").contains("\"skipped\":0"));
    for (option, value) in [("--clip-norm", "0"), ("--clip-norm", "inf"), ("--on-nonfinite", "pray")] {
        let said = fails(bench.train("none", &run).args([option, value]), 2);
        assert!(said.contains(option), "{said}");
    }
}
