//! A NaN or an infinity in an input reaches the outputs and the head's flag: none is swallowed.

use limbeck::gpu::program::SLOTS;
use limbeck::gpu::{AdapterChoice, Gpu, Plan, Tensor};
use limbeck::kernels::adam::{self, Adam};
use limbeck::kernels::gather::{self, Source};
use limbeck::kernels::head::{self, Head, Soft, Teacher};
use limbeck::kernels::matmul::{Activation, Choice, Epilogue, Form, record_with};
use limbeck::kernels::step::{self, Step};
use limbeck::kernels::{metrics, norm, sgd};

const BAD: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

fn devices() -> [Gpu; 2] {
    [false, true]
        .map(|checked| Gpu::open(&AdapterChoice { checked, ..AdapterChoice::default() }).expect("a device"))
}

fn upload(gpu: &Gpu, shape: [usize; 3], data: &[f32]) -> Tensor {
    Tensor::upload(gpu, "input", shape, data).expect("memory")
}

fn run(gpu: &Gpu, record: impl FnOnce(&mut Plan<'_>) -> limbeck::error::Result<()>) {
    let mut plan = Plan::new(gpu);
    record(&mut plan).expect("a dispatch");
    plan.finish().expect("a plan").submit(gpu, 1).expect("a submission");
}

fn read(gpu: &Gpu, tensor: &Tensor) -> Vec<f32> {
    tensor.read_blocking(gpu).expect("an output")
}

/// Every variant once, in turn with another split of K: NaN takes no other way through the others.
fn choices(gpu: &Gpu) -> Vec<Choice> {
    let mut all = Choice::all(gpu);
    let mut turn = 0;
    all.retain(|c| {
        turn += usize::from(c.splits == 1);
        c.splits == 1 || c.splits as usize == [2, 4, 8][turn % 3]
    });
    all
}

/// Positive numbers, so that no sign can turn an infinity into something an activation ends.
fn ones(n: usize) -> Vec<f32> {
    (0..n).map(|i| 0.5 + (i % 5) as f32 / 10.0).collect()
}

#[test]
fn a_product_hands_on_what_is_not_finite() {
    let (m, n, k) = (9, 7, 70);
    for gpu in &devices() {
        for choice in choices(gpu) {
            for activation in [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Gelu] {
                for bad in BAD {
                    // A bounded activation maps an infinity to a number, as it should.
                    let hidden = match activation {
                        Activation::Identity => false,
                        Activation::Relu | Activation::Gelu => bad == f32::NEG_INFINITY,
                        Activation::Tanh => !bad.is_nan(),
                    };
                    if hidden {
                        continue;
                    }
                    let mut a = ones(m * k);
                    a[4 * k + 69] = bad;
                    let (a, b) = (upload(gpu, [1, m, k], &a), upload(gpu, [1, n, k], &ones(n * k)));
                    let bias = upload(gpu, [1, 1, n], &ones(n));
                    let c = Tensor::zeros(gpu, "c", [1, m, n]).expect("memory");
                    let epilogue = Epilogue { bias: Some(&bias), activation, ..Epilogue::default() };
                    run(gpu, |plan| {
                        record_with(plan, "product", choice, Form::Forward, &a, &b, &c, &epilogue)
                    });
                    for (i, x) in read(gpu, &c).iter().enumerate() {
                        let what = format!("{} {activation:?} {bad} element {i}: {x}", choice.text());
                        assert_eq!(x.is_finite(), i / n != 4, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_mask_hands_on_what_is_not_finite() {
    let (m, n, k) = (9, 7, 5);
    for gpu in &devices() {
        for choice in choices(gpu) {
            for mask in [Activation::Relu, Activation::Tanh, Activation::Gelu] {
                for saved in [1.0, -1.0] {
                    let mut a = ones(m * k);
                    a[4 * k + 2] = f32::NAN;
                    let (a, b) = (upload(gpu, [1, m, k], &a), upload(gpu, [1, k, n], &ones(n * k)));
                    let saved = upload(gpu, [1, m, n], &vec![saved * 0.25; m * n]);
                    let (c, sums) = (
                        Tensor::zeros(gpu, "c", [1, m, n]).expect("memory"),
                        Tensor::zeros(gpu, "sums", [1, 1, m]).expect("memory"),
                    );
                    let epilogue = Epilogue { mask: Some((mask, &saved)), ..Epilogue::default() };
                    run(gpu, |plan| {
                        record_with(plan, "masked", choice, Form::InputGradient, &a, &b, &c, &epilogue)
                    });
                    for (i, x) in read(gpu, &c).iter().enumerate() {
                        assert_eq!(x.is_nan(), i / n == 4, "{} {mask:?} element {i}: {x}", choice.text());
                    }
                    // The bias gradient's way, with the operand transposed.
                    let mut d_y = ones(k * m);
                    d_y[2 * m + 4] = f32::NAN;
                    let (d_y, x) = (upload(gpu, [1, k, m], &d_y), upload(gpu, [1, k, n], &ones(k * n)));
                    let epilogue = Epilogue { row_sums: Some(&sums), ..Epilogue::default() };
                    run(gpu, |plan| {
                        record_with(plan, "d_w", choice, Form::WeightGradient, &d_y, &x, &c, &epilogue)
                    });
                    for (i, x) in read(gpu, &sums).iter().enumerate() {
                        assert_eq!(x.is_nan(), i == 4, "{} row sum {i}: {x}", choice.text());
                    }
                }
            }
        }
    }
}

/// Runs the head on 5 rows with `bad` at row 2 of `z` or of `v`, and says which rows were flagged.
fn flagged(
    gpu: &Gpu,
    form: head::Form,
    k: usize,
    soft: Option<Soft>,
    in_z: bool,
    bad: f32,
    label: u32,
) -> Vec<bool> {
    let (batch, column) = (5, k - 1);
    let (mut z, mut v) = (ones(batch * k), ones(batch * k));
    if in_z {
        z[2 * k + column] = bad
    } else {
        v[2 * k + column] = bad
    }
    let (z, v) = (upload(gpu, [1, batch, k], &z), upload(gpu, [1, batch, k], &v));
    let order = Tensor::upload(gpu, "order", [1, 1, batch], &[0_u32, 1, 2, 3, 4]).expect("memory");
    let labels = Tensor::upload(gpu, "labels", [1, 1, batch], &[label; 5]).expect("memory");
    let d_z = Tensor::zeros(gpu, "d_z", [1, batch, k]).expect("memory");
    let stats = Tensor::zeros(gpu, "stats", [1, SLOTS as usize * batch, metrics::WIDTH]).expect("memory");
    let sums = Tensor::zeros(gpu, "metrics", [1, SLOTS as usize, metrics::WIDTH]).expect("memory");
    let ring = step::ring(gpu, 1).expect("memory");
    let own = soft.unwrap_or(Soft::FORWARD_KL);
    let [loss_a, loss_b, loss_c, loss_d] = own.scalars(k);
    let now = Step {
        rows: batch as u32,
        temperature: 2.0,
        hard_weight: 0.5,
        soft_weight: 0.5,
        loss_a,
        loss_b,
        loss_c,
        loss_d,
        ..Step::default()
    };
    step::write(gpu, &ring, &[now]).expect("scalars");
    let teacher = match soft {
        Some(soft) if soft.loss.needs_teacher() => Teacher::Live(v),
        _ => Teacher::None,
    };
    run(gpu, |plan| {
        let io = Head {
            steps: &ring,
            order: &order,
            labels: &labels,
            z: &z,
            teacher: &teacher,
            soft: own,
            d_z: &d_z,
            stats: &stats,
        };
        head::record(plan, "head", &io, form)?;
        metrics::record(plan, "metrics", &stats, &sums)
    });
    let rows: Vec<bool> =
        read(gpu, &stats).chunks(8).take(batch).map(|row| row[4].to_bits() == 1.0_f32.to_bits()).collect();
    // The count is what the loop sees.
    let count = rows.iter().filter(|flag| **flag).count() as f32;
    assert!((read(gpu, &sums)[4] - count).abs() < 0.5, "the sum of the flags");
    rows
}

#[test]
fn the_head_flags_every_row_with_a_logit_that_is_not_finite() {
    for gpu in &devices() {
        let terms = std::iter::once(None).chain(Soft::kinds().into_iter().map(Some));
        let forms = terms.flat_map(|soft| head::Form::all(soft).into_iter().map(move |form| (soft, form)));
        let shapes = forms.flat_map(|f| [3, 10, 64].map(|k| (f, k)));
        for ((soft, form), k) in shapes.filter(|((_, f), k)| f.takes(*k)) {
            let teacher = soft.is_some_and(|s| s.loss.needs_teacher());
            // A row without a label has no such term: what its teacher says does not matter.
            let of_labels = soft.is_some_and(|s| s.loss.needs_labels());
            for bad in BAD {
                for in_z in [true, false].into_iter().filter(|in_z| teacher || *in_z) {
                    for label in [0, k as u32 - 1, head::UNLABELLED] {
                        if of_labels && !in_z && label == head::UNLABELLED {
                            continue;
                        }
                        let rows = flagged(gpu, form, k, soft, in_z, bad, label);
                        let what =
                            format!("{form:?}, {k} classes, {soft:?}, in z {in_z}, {bad}, label {label}");
                        assert_eq!(rows, [false, false, true, false, false], "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn gather_and_optimisers_hand_on_what_is_not_finite() {
    for gpu in &devices() {
        for bad in BAD {
            let mut values = ones(6 * 5);
            values[2 * 5 + 3] = bad;
            let rows = upload(gpu, [1, 6, 5], &values);
            let order = Tensor::upload(gpu, "order", [1, 1, 4], &[5_u32, 2, 0, 2]).expect("memory");
            let (gain, shift) = (upload(gpu, [1, 1, 5], &[0.5; 5]), upload(gpu, [1, 1, 5], &[0.0; 5]));
            let x = Tensor::zeros(gpu, "x", [1, 4, 5]).expect("memory");
            let ring = step::ring(gpu, 1).expect("memory");
            let now = Step {
                rows: 4,
                lr: 0.1,
                momentum: 0.9,
                correction_1: 2.0,
                correction_2: 2.0,
                ..Step::default()
            };
            step::write(gpu, &ring, &[now]).expect("scalars");
            let source = Source { rows, bytes: false, start: 0 };
            run(gpu, |plan| gather::record(plan, "gather", &ring, &order, &source, &gain, &shift, None, &x));
            for (i, x) in read(gpu, &x).iter().enumerate() {
                assert_eq!(x.is_finite(), ![8, 18].contains(&i), "gather {bad}, element {i}: {x}");
            }

            let mut gradient = ones(70);
            gradient[65] = bad;
            let gradient = upload(gpu, [1, 1, 70], &gradient);
            let state = || [0, 1, 2].map(|_| upload(gpu, [1, 1, 70], &ones(70)));
            let [w, m, _] = state();
            run(gpu, |plan| sgd::record(plan, "sgd", true, 0.0, &ring, &gradient, &w, &m, None));
            for (i, w) in read(gpu, &w).iter().enumerate() {
                assert_eq!(w.is_finite(), i != 65, "sgd {bad}, element {i}: {w}");
            }
            // With its norm taken, it reaches nothing but the norm's row.
            let norms = Tensor::zeros(gpu, "norms", [1, SLOTS as usize, norm::WIDTH]).expect("memory");
            let [w, m, _] = state();
            run(gpu, |plan| {
                norm::record(plan, "norm", Some(1.0), &gradient, &norms)?;
                sgd::record(plan, "sgd", true, 0.1, &ring, &gradient, &w, &m, Some(&norms))
            });
            let row = read(gpu, &norms);
            assert!(!row[0].is_finite() && row[1].to_bits() == 0 && row[2].to_bits() == 1.0_f32.to_bits());
            assert_eq!((read(gpu, &w), read(gpu, &m)), (ones(70), ones(70)), "sgd {bad}");
            let [w, m, v] = state();
            let fixed =
                Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.1, decoupled: true };
            run(gpu, |plan| {
                norm::record(plan, "norm", None, &gradient, &norms)?;
                adam::record(plan, "adam", &fixed, &ring, &gradient, &w, [&m, &v], Some(&norms))
            });
            assert_eq!([w, m, v].map(|t| read(gpu, &t)), [0; 3].map(|_| ones(70)), "adam {bad}");

            let [w, m, v] = state();
            let fixed =
                Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.0, decoupled: false };
            run(gpu, |plan| adam::record(plan, "adam", &fixed, &ring, &gradient, &w, [&m, &v], None));
            for (i, w) in read(gpu, &w).iter().enumerate() {
                assert_eq!(w.is_finite(), i != 65, "adam {bad}, element {i}: {w}");
            }
        }
    }
}
