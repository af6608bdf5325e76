//! N + M steps are N steps, a state on disk, and M steps: weights, moments and rows, bit for bit.

use limbeck::data::Dataset;
use limbeck::distill::{Feature, Guard, Loss, Optimizer, Regularize, Teacher};
use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels::adam::Adam;
use limbeck::kernels::feature::Kind;
use limbeck::kernels::matmul::Activation;
use limbeck::mlp::Mlp;
use limbeck::mlp::weights::{Initializer, Weights};
use limbeck::train::state::State;
use limbeck::train::{Length, Recipe, Replica, Row, Rows, Run, Span};

use crate::bench::{Bench, fails, succeeds};

pub const SGD: Optimizer = Optimizer::Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-4 };
pub const ADAM: Optimizer =
    Optimizer::Adam(Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.01, decoupled: true });

pub struct Shop {
    pub gpu: Gpu,
    pub data: Dataset,
    pub teacher: Teacher,
    pub accumulate: usize,
}

impl Shop {
    pub fn new(accumulate: usize) -> Self {
        Self::on(AdapterChoice::default(), accumulate)
    }

    fn on(choice: AdapterChoice, accumulate: usize) -> Self {
        let gpu = Gpu::open(&choice).expect("a device");
        let data = limbeck::data::optdigits().expect("embedded").train;
        let network = Weights::init(&[64, 20, 10], Activation::Relu, Initializer::He, 99).expect("weights");
        let mlp = Mlp::upload(&gpu, "teacher", &[network]).expect("memory");
        Self { gpu, data, teacher: Teacher::Live(mlp), accumulate }
    }

    /// `replicas` students over 300 rows in batches of 32: 10 steps an epoch, the last one short.
    pub fn run(&self, optimizer: Optimizer, replicas: usize, memory: Option<u64>) -> Run<'_> {
        // Norms clipped in some steps and not in others.
        let guard = Guard { clip: (replicas == 3).then_some(0.5), skip: false };
        // A regressor is trained along and has to be there again.
        let hint = Feature { kind: Kind::Hint, student: 1, teacher: 1, weight: 0.5 };
        let features = if replicas == 3 && self.accumulate == 1 { vec![hint] } else { vec![] };
        let regularize = if replicas > 1 {
            Regularize { dropout: 0.5, input_dropout: 0.2, max_norm: Some(1.5), jitter: 1 }
        } else {
            Regularize::default()
        };
        let recipe = Recipe {
            batch: 32,
            accumulate: self.accumulate,
            length: Length::Steps(47),
            optimizer,
            shuffle: true,
            log_every: 7,
            guard,
            features,
            regularize,
        };
        let rows = Rows { walked: vec![(0..300).collect()], device_memory: memory, ..Rows::default() };
        let replica = |seed| Replica {
            seed,
            lr: 0.01 * (1.0 + seed as f64),
            loss: Loss { temperature: 3.0, hard_weight: 0.3, soft_weight: 0.7, ..Loss::HARD },
            schedules: Default::default(),
            student: Weights::init(&[64, 12, 10], Activation::Relu, Initializer::He, seed).expect("weights"),
        };
        let replicas = (0..replicas as u64).map(replica).collect();
        Run::new(&self.gpu, &self.data, rows, &self.teacher, recipe, replicas).expect("a run")
    }
}

/// What a row says, bit for bit; not how fast it came.
fn bits(row: &Row) -> (Span, usize, u64, [u64; 7]) {
    let values = [row.epoch, row.loss, row.hard_loss, row.soft_loss, row.accuracy, row.agreement, row.lr];
    (row.span, row.replica, row.step, values.map(f64::to_bits))
}

pub fn advance(run: &mut Run<'_>, to: u64, rows: &mut Vec<(Span, usize, u64, [u64; 7])>) {
    let keep = |row: &Row| {
        rows.push(bits(row));
        Ok(())
    };
    run.advance_until(to, || false, keep).expect("steps");
}

fn on_disk(state: &State) -> State {
    let names: Vec<String> = state.arenas.iter().map(|(name, _)| name.clone()).collect();
    let bytes = state.to_bytes(&[]).expect("bytes");
    State::from_bytes(&bytes, state.step, &names, "best").expect("a state").0
}

#[test]
fn a_run_in_two_parts_is_the_run_in_one() {
    // Streamed: a window of two batches for each replica.
    let cases = [(ADAM, 1, None), (SGD, 1, None), (ADAM, 3, None), (SGD, 3, None), (ADAM, 2, Some(8192))];
    parts_are_the_whole(&Shop::new(1), &cases);
}

/// Micro-batches of 8 rows; the last step of an epoch has 8, 4, none and none.
#[test]
fn a_run_that_accumulates_in_two_parts_is_the_run_in_one() {
    let cases = [(ADAM, 1, None), (SGD, 3, None), (ADAM, 3, Some(12_288))];
    parts_are_the_whole(&Shop::new(4), &cases);
}

fn parts_are_the_whole(shop: &Shop, cases: &[(Optimizer, usize, Option<u64>)]) {
    for &(optimizer, replicas, memory) in cases {
        let (mut whole, mut rows) = (shop.run(optimizer, replicas, memory), Vec::new());
        advance(&mut whole, 47, &mut rows);
        let end = whole.state_blocking().expect("a state");
        if optimizer == ADAM && replicas == 3 && shop.accumulate == 1 {
            // The regressor's weights and both of its moments have moved and are held below.
            let regressor = end.arenas.iter().filter(|(name, _)| name.starts_with("hint"));
            let moved = regressor.filter(|(_, values)| values.iter().any(|v| *v != 0.0));
            assert_eq!(moved.count(), 3, "{:?}", end.arenas.iter().map(|(name, _)| name).collect::<Vec<_>>());
        }
        // 6 intervals and 4 epochs of each replica.
        assert_eq!(rows.len(), 10 * replicas);

        // At an epoch's end, within an interval, at the first step, before any.
        for cut in [20, 33, 1, 0] {
            let (mut first, mut seen) = (shop.run(optimizer, replicas, memory), Vec::new());
            advance(&mut first, cut, &mut seen);
            let state = on_disk(&first.state_blocking().expect("a state"));
            drop(first);
            let mut second = shop.run(optimizer, replicas, memory);
            second.restore(&state).expect("restored");
            advance(&mut second, 47, &mut seen);
            assert_eq!(seen, rows, "rows of {optimizer:?} x {replicas} cut at {cut}");
            // Moments are among the arenas.
            assert_eq!(
                second.state_blocking().expect("a state"),
                end,
                "{optimizer:?} x {replicas} cut at {cut}"
            );
        }
    }
}

#[test]
fn a_state_of_another_form_is_refused() {
    let shop = Shop::new(1);
    let state = shop.run(SGD, 1, None).state_blocking().expect("a state");
    for other in [&mut shop.run(ADAM, 1, None), &mut shop.run(SGD, 2, None)] {
        let error = other.restore(&state).expect_err("another form");
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}

#[test]
fn streamed_rows_give_the_bits_of_resident_ones() {
    let shop = Shop::new(1);
    let end = |replicas, memory| {
        let (mut run, mut rows) = (shop.run(ADAM, replicas, memory), Vec::new());
        advance(&mut run, 47, &mut rows);
        (run.state_blocking().expect("a state"), rows)
    };
    assert_eq!(end(1, None), end(1, Some(4096)));
    // With what is drawn in each step.
    assert_eq!(end(2, None), end(2, Some(8192)));
}

/// By wgpu with checked shaders, and past it where that is possible without.
#[test]
fn both_ways_of_encoding_give_the_same_bits() {
    for accumulate in [1, 4] {
        let [direct, tracked] = [false, true].map(|checked| {
            let shop = Shop::on(AdapterChoice { checked, ..AdapterChoice::default() }, accumulate);
            let (mut run, mut rows) = (shop.run(ADAM, 3, None), Vec::new());
            advance(&mut run, 47, &mut rows);
            (run.state_blocking().expect("a state"), rows, shop.gpu.report.kind == "software")
        });
        assert_eq!((direct.0.step, direct.1.len()), (tracked.0.step, tracked.1.len()));
        // A compiler for a GPU may contract one of two shaders otherwise than the other.
        assert!(direct == tracked || !direct.2, "{accumulate} parts: the bits differ");
    }
}

/// From the outside: two parts, with other options for how the run is kept, are one.
#[test]
fn a_resumed_run_is_the_run_in_one() {
    let bench = Bench::new();
    let fixed = ["--steps", "130", "--log-every", "30", "--lr", "0.01"];
    succeeds(bench.train("whole", &fixed).args(["--checkpoint-every", "never"]));
    assert!(bench.checkpoints("whole").is_empty());
    succeeds(bench.train("parts", &fixed).args(["--max-steps", "61", "--checkpoint-every", "25"]));
    assert_eq!(bench.checkpoints("parts"), [25, 50, 61]);
    assert_eq!(bench.json("parts/summary.json")["ending"], "max_steps");
    // The options are those of the run's own file.
    let said = succeeds(
        crate::bench::limbeck().args(["train", "--resume", "--keep", "2", "--out"]).arg(bench.path("parts")),
    );
    assert!(said.contains("resuming after step 61") && said.contains("keep is 2, was 3"), "{said}");
    assert_eq!(bench.checkpoints("parts"), [125, 130]);
    bench.same("whole", "parts");
    let record = bench.json("parts/run.json");
    assert_eq!((&record["status"], &record["resumed"]), (&"complete".into(), &serde_json::json!([61])));

    // A run that is complete stays what it is, and a longer one goes on from it.
    succeeds(bench.train("parts", &fixed).arg("--resume"));
    bench.same("whole", "parts");
    let longer = ["--steps", "170", "--log-every", "30", "--lr", "0.01"];
    succeeds(bench.train("parts", &longer).arg("--resume"));
    succeeds(&mut bench.train("longer", &longer));
    bench.same("longer", "parts");
}

#[test]
fn what_is_not_the_same_run_is_not_resumed() {
    let bench = Bench::new();
    let said = succeeds(bench.train("run", &["--steps", "20", "--seed", "1"]).arg("--resume"));
    assert!(said.contains("nothing to resume"), "{said}");
    for (more, word) in [(["--seed", "2"], "seed 2"), (["--label-fraction", "0.5"], "data")] {
        let said = fails(bench.train("run", &["--steps", "30", "--resume"]).args(more), 2);
        assert!(said.contains("resume the run") && said.contains(word), "{said}");
    }
    let said = fails(
        bench
            .train("run", &["--steps", "30", "--seed", "1", "--resume", "--optimizer", "sgd"])
            .args(["--lr", "1"]),
        2,
    );
    assert!(said.contains("checkpoint") && said.contains("moment_2"), "{said}");
    let said = fails(&mut bench.train("run", &["--steps", "20"]), 2);
    assert!(said.contains("--resume") && said.contains("--force"), "{said}");
    // Results of something else.
    std::fs::create_dir(bench.path("other")).expect("a folder");
    std::fs::write(bench.path("other/metrics.jsonl"), "{}\n").expect("written");
    let said = fails(&mut bench.train("other", &["--steps", "20", "--resume"]), 2);
    assert!(said.contains("run.json") && said.contains("metrics.jsonl"), "{said}");
    assert_eq!(bench.text("other/metrics.jsonl"), "{}\n");
}
