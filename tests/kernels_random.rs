//! Every kernel on drawn shapes, strides, replicas, options and kinds of data. The draw is the same
//! each time; a failure shrinks to its smallest case.

use std::cell::Cell;

use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels::adam::Adam;
use limbeck::kernels::gather::Jitter;
use limbeck::kernels::head::{Form, Soft};
use limbeck::kernels::matmul::Choice;
use limbeck::reference::SoftLoss;
use limbeck::verify::head::From;
use limbeck::verify::matmul::{Ends, Shared};
use limbeck::verify::{Case, Data, Padding, adam, gather, head, matmul, metrics, norm, sgd};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// For unchecked shaders and checked ones. Each test has its own, for a device compiles one shader at a time.
fn devices() -> [Gpu; 2] {
    [false, true]
        .map(|checked| Gpu::open(&AdapterChoice { checked, ..AdapterChoice::default() }).expect("a device"))
}

/// Holds `cases` draws to the reference, and the checked shaders to the unchecked ones.
fn hold([gpu, checked_gpu]: &[Gpu; 2], name: &str, cases: u32, strategy: impl Strategy<Value = Case>) {
    let config =
        Config { cases, rng_seed: RngSeed::Fixed(0x11BB), failure_persistence: None, ..Config::default() };
    let seen = Cell::new((0, 0.0_f64));
    TestRunner::new(config)
        .run(&strategy, |case| {
            let run = |gpu| case.check(gpu).map_err(|e| TestCaseError::fail(format!("{case:?}: {e}")));
            let verdict = run(gpu)?;
            prop_assert!(verdict.passes(), "{verdict}");
            let checked = run(checked_gpu)?;
            prop_assert!(checked.passes(), "checked shaders: {checked}");
            // A GPU's compiler fuses a product and a sum where it likes, and the checks change what it sees.
            let same = checked.digest == verdict.digest || gpu.report.kind != "software";
            prop_assert!(same, "checked shaders differ: {verdict}");
            let (count, worst) = seen.get();
            seen.set((count + 1, worst.max(verdict.worst.ratio)));
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let (seen, worst) = seen.get();
    println!("{name:8} {seen:4} draws, worst {worst:.4} of the bound");
    assert_eq!(seen, cases);
}

/// 1, primes, and one past every tile that a kernel could have, more often than anything else.
fn size(most: usize) -> impl Strategy<Value = usize> {
    let awkward: Vec<usize> = [1, 2, 3, 5, 7, 9, 13, 17, 31, 33, 64, 65, 67, 97, 127, 129, 131, 193, 257]
        .into_iter()
        .filter(|n| *n <= most)
        .collect();
    prop_oneof![3 => select(awkward), 1 => 1..=most]
}

fn padding() -> impl Strategy<Value = Padding> {
    (0..3_usize, 0..3_usize).prop_map(|(row, replica)| Padding { row, replica })
}

fn data() -> impl Strategy<Value = Data> {
    select(Data::ALL.to_vec())
}

#[test]
fn matmul_holds_on_drawn_cases() {
    let shapes = (size(150), size(150), size(300), 1..4_usize);
    let devices = devices();
    let (ends, choices) = (Ends::all(), Choice::all(&devices[0]));
    // What takes long is the driver's compiler, and tests/kernels.rs has every epilogue with one tile of each member: here
    // each choice has two of the nineteen, which leaves out none, and some six draws of each.
    let two = |(i, choice)| [i, i + 9].map(|i| (ends[i % ends.len()], choice));
    let options: Vec<_> = choices.into_iter().enumerate().flat_map(two).collect();
    assert!(ends.iter().all(|end| options.iter().any(|(o, _)| o == end)), "an epilogue that is never drawn");
    let drawn = 6 * options.len() as u32;
    let options = select(options);
    let shared = select(vec![Shared::None, Shared::A, Shared::B]);
    let strategy = (shapes, options, shared, padding(), data(), any::<u64>()).prop_map(
        |((m, n, k, replicas), ((form, ends), choice), shared, padding, data, seed)| {
            let case = matmul::Case { choice, m, n, k, replicas, shared, padding, form, ends, data, seed };
            Case::Matmul(case)
        },
    );
    hold(&devices, "matmul", drawn, strategy);
}

/// Any soft term with any parameters; every third plain forward KL, which has the most forms.
fn soft() -> impl Strategy<Value = Soft> {
    let loss = prop_oneof![
        Just(SoftLoss::ForwardKl),
        Just(SoftLoss::ReverseKl),
        Just(SoftLoss::Symmetric),
        (0.01..0.99_f64).prop_map(|beta| SoftLoss::Jsd { beta }),
        (0.0..2.0_f64, 0.0..8.0_f64).prop_map(|(alpha, beta)| SoftLoss::Dkd { alpha, beta }),
        (1e-7_f64.ln()..0.01_f64.ln()).prop_map(|clip| SoftLoss::ClippedKl { clip: clip.exp() }),
        (0.01..0.99_f64).prop_map(|confidence| SoftLoss::VirtualTeacher { confidence }),
        Just(SoftLoss::Sigmoid),
        Just(SoftLoss::Mse),
    ];
    let other = (loss, any::<bool>()).prop_map(|(loss, standardise)| {
        let clipped = matches!(loss, SoftLoss::ClippedKl { .. });
        Soft { loss, standardise: standardise && loss.is_softmax_based() && !clipped }
    });
    prop_oneof![1 => Just(Soft::FORWARD_KL), 2 => other]
}

#[test]
fn head_holds_on_drawn_cases() {
    let k = prop_oneof![2 => size(300).prop_map(|k| k.max(2)), 1 => select(vec![2, 10, 1000, 1021])];
    let shapes = (size(70), k, 1..4_usize, 0.0..1.0_f64);
    let teacher = (select(From::ALL.to_vec()), any::<bool>(), any::<bool>());
    // T between 0.5 and 100, every size as likely as another.
    let temperature = (0.5_f32.ln()..100_f32.ln()).prop_map(|t| t.exp().clamp(0.5, 100.0));
    let weights = (0.0..2.0_f32, 0.0..2.0_f32, prop_oneof![Just(0.0_f32), 0.0..0.9_f32]);
    let rest = (padding(), data(), any::<u64>(), any::<usize>());
    let strategy = (shapes, (teacher, soft()), temperature, weights, rest).prop_map(
        |(shapes, ((teacher, one_order, unlabelled), soft), temperature, weights, rest)| {
            let (batch, k, replicas, share) = shapes;
            let (padding, data, seed, pick) = rest;
            let k = if soft.check_classes(k).is_ok() { k } else { k + 1 };
            // Long rows are the reference's time, not the device's.
            let batch = if k > 300 { batch.min(9) } else { batch };
            let teacher = if soft.loss.needs_teacher() { teacher } else { From::Nowhere };
            let term = (teacher != From::Nowhere || !soft.loss.needs_teacher()).then_some(soft);
            let (hard_weight, soft_weight, smoothing) = weights;
            let forms: Vec<Form> = Form::all(term).into_iter().filter(|f| f.takes(k)).collect();
            Case::Head(head::Case {
                batch,
                rows: ((batch as f64 * share) as usize + 1).min(batch),
                k,
                replicas,
                form: forms[pick % forms.len()],
                teacher,
                soft,
                one_order,
                unlabelled,
                temperature,
                hard_weight,
                soft_weight,
                smoothing,
                padding,
                data,
                seed,
            })
        },
    );
    hold(&devices(), "head", 600, strategy);
}

#[test]
fn gather_and_metrics_hold_on_drawn_cases() {
    let devices = devices();
    let shapes = (size(130), size(130), size(300), 1..4_usize, 0.0..=1.0_f64);
    let flags = (any::<bool>(), any::<bool>(), 1..4_usize, 0..3_usize);
    let strategy = (shapes, flags, padding(), data(), any::<u64>()).prop_map(
        |(
            (batch, features, items, replicas, share),
            (one_order, bytes, chunks, reach),
            padding,
            data,
            seed,
        )| {
            let rows = (batch as f64 * share) as usize;
            let height = if features % 2 == 0 { 2 } else { 1 };
            let image = Jitter { height, width: features / height, channels: 1, reach };
            Case::Gather(gather::Case {
                batch,
                rows,
                features,
                items,
                replicas,
                one_order,
                bytes,
                chunks,
                jitter: (reach > 0).then_some(image),
                padding,
                data,
                seed,
            })
        },
    );
    hold(&devices, "gather", 150, strategy);
    let strategy = (size(130), 1..4_usize, padding(), data(), any::<u64>()).prop_map(
        |(batch, replicas, padding, data, seed)| {
            Case::Metrics(metrics::Case { batch, replicas, padding, data, seed })
        },
    );
    hold(&devices, "metrics", 60, strategy);
}

#[test]
fn optimisers_hold_on_drawn_cases() {
    let devices = devices();
    let shared = || (size(3000), 1..4_usize, any::<bool>(), data(), any::<u64>());
    let scale = || select(vec![None, Some(0.0_f32), Some(0.25), Some(1.0)]);
    let strategy = (shared(), prop_oneof![Just(None), (1e-6..1e6_f32).prop_map(Some)]).prop_map(
        |((len, replicas, _, data, seed), clip)| Case::Norm(norm::Case { len, replicas, clip, data, seed }),
    );
    hold(&devices, "norm", 150, strategy);
    let rates = || (1e-5..1.0_f32, prop_oneof![Just(0.0_f32), 1e-5..0.5_f32]);
    let strategy = (shared(), rates(), 0.0..1.0_f32, scale()).prop_map(
        |((len, replicas, nesterov, data, seed), (lr, weight_decay), momentum, scale)| {
            Case::Sgd(sgd::Case { len, replicas, nesterov, momentum, weight_decay, lr, scale, data, seed })
        },
    );
    hold(&devices, "sgd", 150, strategy);
    let fixed = (0.5..0.99_f64, 0.9..0.9999_f64, 1e-8..1e-3_f64, any::<bool>(), 1..5000_u64);
    let strategy = (shared(), rates(), fixed, scale()).prop_map(
        |(
            (len, replicas, decoupled, data, seed),
            (lr, decay),
            (beta_1, beta_2, epsilon, keras, step),
            scale,
        )| {
            let adam = Adam { beta_1, beta_2, epsilon, weight_decay: f64::from(decay), decoupled };
            Case::Adam(adam::Case { len, replicas, adam, keras, step, lr, scale, data, seed })
        },
    );
    hold(&devices, "adam", 150, strategy);
}
