//! The losses against central differences, identities, saturation, and f32 stand-ins for a kernel.

use super::super::rounding::{U, hostile};
use super::super::testing::{Random, assert_close, assert_gradient};
use super::super::{Bounded, worst};
use super::*;

/// Those that vanish at z = v (the virtual teacher has no v).
const TOWARDS_TEACHER: [SoftLoss; 7] = [
    SoftLoss::ForwardKl,
    SoftLoss::ReverseKl,
    SoftLoss::Symmetric,
    SoftLoss::Jsd { beta: 0.3 },
    SoftLoss::Dkd { alpha: 1.0, beta: 8.0 },
    SoftLoss::Mse,
    SoftLoss::Sigmoid,
];
const VIRTUAL: SoftLoss = SoftLoss::VirtualTeacher { confidence: 0.9 };
/// Far above Keras's 1e-7, so that it clips a good part of the rows drawn here; and no 1 / K, where
/// the gradient of a nearly even row has its jump.
const CLIPPED: SoftLoss = SoftLoss::ClippedKl { clip: 0.007 };

fn all() -> impl Iterator<Item = (SoftLoss, bool)> {
    let losses = TOWARDS_TEACHER.into_iter().chain([VIRTUAL]);
    losses.flat_map(|loss| [(loss, false), (loss, true)]).chain([(CLIPPED, false)])
}

fn ignores_a_shift(loss: SoftLoss, standardise: bool) -> bool {
    standardise || !matches!(loss, SoftLoss::Mse | SoftLoss::Sigmoid)
}

fn values(row: &[Rounded]) -> Vec<f64> {
    row.iter().map(|x| x.value).collect()
}

#[test]
fn soft_gradients_match_central_differences() {
    let mut random = Random(20);
    for (loss, standardise) in all() {
        for (classes, temperature) in [(3, 1.0), (5, 0.5), (10, 4.0), (17, 20.0)] {
            let (z, v) = (random.row(classes, 4.0), random.row(classes, 4.0));
            let label = Some(random.label(classes));
            let f = |z: &[f64]| loss.evaluate(z, &v, label, temperature, standardise);
            let what = format!("{loss:?} standardise {standardise} K {classes} T {temperature}");
            let gradient = values(&f(&z).d_z);
            assert_gradient(&z, &gradient, |z| f(z).loss.value, &what);
        }
    }
}

#[test]
fn two_classes_match_central_differences_except_for_dkd() {
    let (z, v) = ([0.7, -1.1], [2.0, 0.5]);
    for (loss, standardise) in all() {
        if !matches!(loss, SoftLoss::Dkd { .. }) {
            let f = |z: &[f64]| loss.evaluate(z, &v, Some(1), 3.0, standardise);
            let gradient = values(&f(&z).d_z);
            assert_gradient(&z, &gradient, |z| f(z).loss.value, &format!("{loss:?}"));
        }
    }
}

#[test]
#[should_panic(expected = "DKD needs 3 classes")]
fn dkd_refuses_two_classes() {
    let dkd = SoftLoss::Dkd { alpha: 1.0, beta: 1.0 };
    dkd.evaluate(&[0.0, 1.0], &[1.0, 0.0], Some(0), 1.0, false);
}

#[test]
fn cross_entropy_matches_central_differences_and_its_formula() {
    for smoothing in [0.0, 0.1] {
        let z = Random(21).row(7, 4.0);
        let f = |z: &[f64]| cross_entropy(z, 2, smoothing);
        let gradient = values(&f(&z).d_z);
        assert_gradient(&z, &gradient, |z| f(z).loss.value, "cross-entropy");
        assert_close(gradient.iter().sum(), 0.0, 1e-14);
        let lse = log_sum_exp(&exact_row(&z)).value;
        let mean = z.iter().sum::<f64>() / 7.0;
        let formula = lse - (1.0 - smoothing) * z[2] - smoothing * mean;
        assert_close(f(&z).loss.value, formula, 1e-13);
    }
}

#[test]
fn gradients_of_softmax_losses_sum_to_zero() {
    let mut random = Random(22);
    for (loss, standardise) in all().filter(|(l, s)| ignores_a_shift(*l, *s)) {
        let (z, v) = (random.row(10, 9.0), random.row(10, 9.0));
        let row = loss.evaluate(&z, &v, Some(3), 2.0, standardise);
        assert_close(values(&row.d_z).iter().sum(), 0.0, 1e-12);
    }
}

#[test]
fn a_shift_of_either_side_changes_nothing() {
    let mut random = Random(23);
    for (loss, standardise) in all().filter(|(l, s)| ignores_a_shift(*l, *s)) {
        let (z, v) = (random.row(10, 3.0), random.row(10, 3.0));
        let moved = |row: &[f64], by: f64| row.iter().map(|x| x + by).collect::<Vec<_>>();
        let a = loss.evaluate(&z, &v, Some(3), 2.0, standardise);
        let b = loss.evaluate(&moved(&z, 11.0), &moved(&v, -5.0), Some(3), 2.0, standardise);
        assert_close(a.loss.value, b.loss.value, 1e-11);
        for (a, b) in a.d_z.iter().zip(&b.d_z) {
            assert_close(a.value, b.value, 1e-11);
        }
    }
}

#[test]
fn loss_and_gradient_vanish_at_the_teacher_and_nowhere_else() {
    let mut random = Random(24);
    for loss in TOWARDS_TEACHER {
        for standardise in [false, true] {
            let (z, v) = (random.row(10, 5.0), random.row(10, 5.0));
            let at = loss.evaluate(&v, &v, Some(3), 2.0, standardise);
            assert_close(at.loss.value, 0.0, 1e-12);
            assert!(at.d_z.iter().all(|d| d.value.abs() < 1e-12), "{loss:?}");
            let away = loss.evaluate(&z, &v, Some(3), 2.0, standardise);
            assert!(away.loss.value > 1e-3, "{loss:?}");
        }
    }
}

#[test]
fn kl_is_tckd_plus_the_rest_of_nckd() {
    let mut random = Random(25);
    let (z, v) = (random.row(10, 3.0), random.row(10, 3.0));
    let (z, v, t) = (exact_row(&z), exact_row(&v), Rounded::exact(2.0));
    let p_c = softmax(&v, t)[4].value;
    let split = dkd(&z, &v, 4, t, 1.0, 1.0 - p_c);
    assert_close(split.loss.value, forward_kl(&z, &v, t).loss.value, 1e-13);
}

#[test]
fn at_high_temperature_kd_is_matching_of_centred_logits() {
    let mut random = Random(26);
    let k = 10;
    let (z, v) = (random.row(k, 3.0), random.row(k, 3.0));
    let mean = |row: &[f64]| row.iter().sum::<f64>() / k as f64;
    let worst_at = |t: f64| {
        let d_z = SoftLoss::ForwardKl.evaluate(&z, &v, None, t, false).d_z;
        (0..k)
            .map(|i| {
                let limit = ((z[i] - mean(&z)) - (v[i] - mean(&v))) / k as f64;
                (d_z[i].value - limit).abs()
            })
            .fold(0.0, f64::max)
    };
    assert!(worst_at(1e3) < 1e-2);
    assert_close(worst_at(1e4) / worst_at(1e3), 0.1, 0.01);
}

#[test]
fn clipped_kl_is_what_keras_computes() {
    let mut random = Random(34);
    let (z, v, t) = (random.row(10, 9.0), random.row(10, 9.0), 2.0);
    let of = |clip| SoftLoss::ClippedKl { clip }.evaluate(&z, &v, None, t, false);
    let forward = SoftLoss::ForwardKl.evaluate(&z, &v, None, t, false);
    assert_close(of(1e-30).loss.value, forward.loss.value, 1e-12);
    for (a, b) in of(1e-30).d_z.iter().zip(&forward.d_z) {
        assert_close(a.value, b.value, 1e-12);
    }
    let softmax = |row: &[f64]| values(&softmax(&exact_row(row), Rounded::exact(t)));
    let (q, p) = (softmax(&z), softmax(&v));
    let clip = 0.01_f64;
    assert!(q.iter().any(|q| *q < clip) && p.iter().any(|p| *p < clip), "both sides are clipped");
    let sum: f64 = q.iter().zip(&p).map(|(q, p)| p.max(clip) * (p.max(clip) / q.max(clip)).ln()).sum();
    assert_close(of(clip).loss.value, t * t * sum, 1e-12);
}

#[test]
fn jsd_over_beta_tends_to_forward_kl() {
    let mut random = Random(27);
    let (z, v) = (random.row(10, 3.0), random.row(10, 3.0));
    let beta = 1e-6;
    let jsd = SoftLoss::Jsd { beta }.evaluate(&z, &v, None, 2.0, false);
    let kl = SoftLoss::ForwardKl.evaluate(&z, &v, None, 2.0, false);
    assert_close(jsd.loss.value / beta, kl.loss.value, 1e-4);
    for (a, b) in jsd.d_z.iter().zip(&kl.d_z) {
        assert_close(a.value / beta, b.value, 1e-3);
    }
}

#[test]
fn a_symmetric_loss_does_not_care_who_teaches() {
    let mut random = Random(28);
    let (a, b) = (random.row(6, 3.0), random.row(6, 3.0));
    for loss in [SoftLoss::Symmetric, SoftLoss::Jsd { beta: 0.5 }] {
        let one = loss.evaluate(&a, &b, None, 2.0, false).loss.value;
        let other = loss.evaluate(&b, &a, None, 2.0, false).loss.value;
        assert_close(one, other, 1e-13);
    }
}

#[test]
fn a_virtual_teacher_says_what_it_should() {
    let v = virtual_teacher(10, 3, 0.9);
    let p = softmax(&v, Rounded::exact(1.0));
    assert_close(p[3].value, 0.9, 1e-14);
    assert_close(p[0].value, 0.1 / 9.0, 1e-14);
    // A student that already says so pays nothing, at any temperature.
    let row = VIRTUAL.evaluate(&values(&v), &[0.0; 10], Some(3), 20.0, false);
    assert_close(row.loss.value, 0.0, 1e-12);
}

#[test]
fn everything_stays_finite_at_saturation() {
    for classes in [3, 10, 1000] {
        for gap in [0.0, 20.0, 200.0, 1e4] {
            for temperature in [0.5, 1.0, 100.0] {
                let mut z = vec![0.0; classes];
                let mut v = vec![0.0; classes];
                z[1] = gap;
                v[2] = gap;
                v[0] = -gap;
                for label in 0..3 {
                    let hard = cross_entropy(&z, label, 0.1);
                    assert_finite(&hard, "cross-entropy");
                    for (loss, standardise) in all() {
                        let row = loss.evaluate(&z, &v, Some(label), temperature, standardise);
                        let what = format!("{loss:?} {standardise} K {classes} gap {gap} T {temperature}");
                        assert_finite(&row, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn a_vocabulary_of_152_000_stays_finite() {
    let k = 152_000;
    let (mut z, mut v) = (vec![-1e4; k], Random(29).row(k, 10.0));
    (z[7], v[k - 1]) = (0.0, 1e4);
    for (loss, standardise) in all() {
        let row = loss.evaluate(&z, &v, Some(7), 2.0, standardise);
        assert_finite(&row, &format!("{loss:?}"));
    }
    assert_finite(&cross_entropy(&z, k - 1, 0.1), "cross-entropy");
}

fn assert_finite(row: &RowLoss, what: &str) {
    for x in row.d_z.iter().chain([&row.loss]) {
        assert!(x.value.is_finite() && x.error.is_finite(), "{what}: {x:?}");
    }
    // To the last rounding of f64: a divergence is never negative. What was clipped no longer sums to 1.
    assert!(row.loss.value >= -1e-9 || what.contains("Clipped"), "{what}: {:?}", row.loss);
}

#[test]
fn dkd_keeps_its_digits_where_the_target_saturates() {
    // 1 - q_c is about e^-100: log(1 - q_c) by subtraction would be log 0, even in f64.
    let z = exact_row(&[100.0, 0.0, 0.0]);
    let student = decouple(&z, 0, Rounded::exact(1.0));
    assert_close(student.log_rest.value, 2.0_f64.ln() - 100.0, 1e-13);
}

#[test]
fn standardised_logits_have_mean_0_and_deviation_1() {
    let z = Random(30).row(9, 50.0);
    let zs = values(&standardised(&exact_row(&z)).logits);
    assert_close(zs.iter().sum(), 0.0, 1e-13);
    let square: f64 = zs.iter().map(|x| x * x).sum();
    assert_close((square / 8.0).sqrt(), 1.0, 1e-6);
}

#[test]
fn a_constant_row_is_guarded() {
    let v = [1.0, 2.0, 3.0, 4.0];
    for constant in [0.0, 0.1, -1e4] {
        let z = [constant; 4];
        for (student, teacher) in [(&z, &v), (&v, &z), (&z, &z)] {
            for loss in TOWARDS_TEACHER {
                let row = loss.evaluate(student, teacher, Some(0), 2.0, true);
                assert_finite(&row, &format!("{loss:?}"));
            }
        }
        // Its standardised logits are all 0: the loss is that of a uniform student, without slope.
        let row = SoftLoss::ForwardKl.evaluate(&z, &v, None, 2.0, true);
        assert!(row.loss.value > 0.0);
        assert!(row.d_z.iter().all(|d| d.value.abs() < f64::MIN_POSITIVE));
    }
}

/// T^2 KL(p, q) and T (q - p) in f32, as a kernel does it, with a planted wrong temperature.
fn device_forward_kl(z: &[f32], v: &[f32], t: f32) -> (f32, Vec<f32>) {
    let log_softmax = |row: &[f32]| {
        let m = row.iter().fold(f32::MIN, |m, x| m.max(*x));
        let x: Vec<f32> = row.iter().map(|x| (x - m) * (1.0 / t)).collect();
        let log_s = x.iter().map(|x| x.exp()).sum::<f32>().ln();
        x.iter().map(|x| x - log_s).collect::<Vec<f32>>()
    };
    let (lq, lp) = (log_softmax(z), log_softmax(v));
    let terms = (0..z.len()).map(|i| lp[i].exp() * (lp[i] - lq[i]));
    let d_z = (0..z.len()).map(|i| t * (lq[i].exp() - lp[i].exp()));
    let d_z = d_z.collect();
    (t * t * terms.sum::<f32>(), d_z)
}

/// The ratios to the bound of a kernel's loss and d_z, where the kernel takes `planted` for T.
fn ratios(classes: usize, size: f64, t: f64, planted: f64) -> (f64, f64) {
    let mut random = Random(31);
    let (z, v) = (random.row(classes, size), random.row(classes, size));
    let to_f32 = |row: &[f64]| row.iter().map(|x| *x as f32).collect::<Vec<_>>();
    let row = SoftLoss::ForwardKl.evaluate(&z, &v, None, t, false);
    let (loss, d_z) = device_forward_kl(&to_f32(&z), &to_f32(&v), planted as f32);
    (
        worst(&[loss], &Bounded::from_rounded(1, 1, &[row.loss]), 1).ratio,
        worst(&d_z, &Bounded::from_rounded(1, classes, &row.d_z), 1).ratio,
    )
}

#[test]
fn an_f32_kernel_is_within_the_bound_and_a_slightly_wrong_one_is_not() {
    for (classes, size, t) in
        [(2, 1e4, 0.5), (10, 9.0, 4.0), (257, 90.0, 1.0), (1000, 9.0, 4.0), (1000, 9.0, 100.0)]
    {
        let (loss, d_z) = ratios(classes, size, t, t);
        assert!(loss <= 1.0 && d_z <= 1.0, "K {classes}: {loss} {d_z}");
        // At T = 100 the loss is at its limit, which does not depend on T: there 10% must show.
        let wrong = if t < 100.0 { 1.01 } else { 1.1 };
        let (loss, d_z) = ratios(classes, size, t, wrong * t);
        assert!(d_z > 1.0, "K {classes} T {t}: {d_z}");
        assert!(loss > 1.0 || t >= 100.0, "K {classes} T {t}: {loss}");
    }
}

/// On the worst conforming device each loss and gradient is within its bound, also at saturation,
/// where a first-order analysis could fail.
#[test]
fn every_bound_holds_on_a_hostile_device() {
    let mut random = Random(33);
    let mut worst = (0.0_f64, 0.0_f64);
    for (loss, standardise) in all() {
        for (classes, size, t) in [
            (3, 4.0, 1.0),
            (10, 9.0, 4.0),
            (10, 200.0, 0.5),
            (10, 1e4, 0.5),
            (100, 0.01, 100.0),
            (1000, 20.0, 2.0),
        ] {
            let (z, v) = (random.row(classes, size), random.row(classes, size));
            let evaluate = || loss.evaluate(&z, &v, Some(1), t, standardise);
            let row = evaluate();
            for seed in 0..5 {
                let device = hostile::run(seed, evaluate);
                let ratio = |device: Rounded, row: Rounded| {
                    let ratio = (device.value - row.value).abs() / (row.error * U);
                    let at = format!("{loss:?} {standardise} K {classes} size {size} T {t}");
                    assert!(ratio <= 1.0, "{at}: {device:?} for {row:?}");
                    ratio
                };
                worst.0 = worst.0.max(ratio(device.loss, row.loss));
                for (device, row) in device.d_z.iter().zip(&row.d_z) {
                    worst.1 = worst.1.max(ratio(*device, *row));
                }
            }
        }
    }
    println!("worst ratio: loss {:.2}, d_z {:.2}", worst.0, worst.1);
    // Errors at random are well inside a sum of worst cases, but not far inside.
    assert!(worst.0 > 0.1 && worst.1 > 0.1, "{worst:?}");
}

/// A bound that admits anything proves nothing: with ordinary logits a loss is known to 0.01% of its
/// size and its gradient to 0.01% of its largest element. Standardised ones have lost digits to
/// their mean and deviation, and those of a mixture or a clipped row cancel where both are
/// nearly sure: 1%.
#[test]
fn every_bound_is_useful() {
    let mut random = Random(32);
    for (loss, standardise) in all() {
        for (classes, temperature) in [(3, 1.0), (10, 4.0), (100, 2.0)] {
            let (z, v) = (random.row(classes, 6.0), random.row(classes, 6.0));
            let row = loss.evaluate(&z, &v, Some(1), temperature, standardise);
            let largest = row.d_z.iter().fold(0.0_f64, |m, d| m.max(d.value.abs()));
            let error = row.d_z.iter().fold(0.0_f64, |m, d| m.max(d.error));
            let (of_loss, of_d_z) = (row.loss.error * U / row.loss.value, error * U / largest);
            println!("{loss:?} {standardise} K {classes}: loss {of_loss:.1e} d_z {of_d_z:.1e}");
            let clipped = matches!(loss, SoftLoss::ClippedKl { .. });
            if clipped && classes == 3 {
                // All but one class of this student are clipped: there is no slope to know.
                continue;
            }
            let mixture = clipped || matches!(loss, SoftLoss::Jsd { .. });
            let limit = if standardise || mixture { 1e-2 } else { 1e-4 };
            assert!(of_loss < limit && of_d_z < limit, "{loss:?} {standardise}");
        }
    }
}
