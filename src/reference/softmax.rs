//! Softmax with temperature, in log space.
//!
//! x_i = (z_i - m) / T with m = max z, S = sum exp(x_i), log q_i = x_i - log S, q_i = exp(log q_i).
//! The maximum is subtracted before anything else is rounded, so a common offset of the logits
//! costs no digits; a kernel that divides by T first loses |m|/T * u and does not meet these bounds.
//!
//! What the bounds come to (in units of u; `rounding` counts them): x carries 4.5|x|, exp(x)
//! relatively 10 + 6.5|x|, S another 64 + K/32 at most for its additions, so log q and, relatively, q
//! carry about that plus 15, 6.5|x| and a q-weighted mean of 10 + 6.5|x|. exp(x_i) / S is within the bound of q too.

use super::{Bounded, Matrix, Rounded};

/// log sum exp(z), without temperature.
pub fn log_sum_exp(z: &[Rounded]) -> Rounded {
    let m = maximum(z);
    m + z.iter().map(|z| (*z - m).exp()).sum::<Rounded>().log()
}

/// log softmax(z / T).
pub fn log_softmax(z: &[Rounded], temperature: Rounded) -> Vec<Rounded> {
    let m = maximum(z);
    let x: Vec<Rounded> = z.iter().map(|z| (*z - m) / temperature).collect();
    let log_s = x.iter().map(|x| x.exp()).sum::<Rounded>().log();
    x.iter().map(|x| *x - log_s).collect()
}

/// softmax(z / T).
pub fn softmax(z: &[Rounded], temperature: Rounded) -> Vec<Rounded> {
    exp_all(&log_softmax(z, temperature))
}

/// exp of every element: probabilities from log-probabilities.
pub fn exp_all(log: &[Rounded]) -> Vec<Rounded> {
    log.iter().map(|l| l.exp()).collect()
}

/// log(e^a + e^b) = max + log(1 + e^-|a - b|).
pub fn log_add_exp(a: Rounded, b: Rounded) -> Rounded {
    let one = Rounded::exact(1.0);
    a.max(b) + (one + (-(a - b).abs()).exp()).log()
}

/// Row by row softmax(z / T) of [B, K]; n = 1.
pub fn softmax_rows(z: &Matrix, temperature: f64) -> Bounded {
    let exact = Bounded::exact(z.clone()).to_rounded(1);
    let t = Rounded::parameter(temperature);
    let out: Vec<Rounded> = exact.chunks(z.cols).flat_map(|row| softmax(row, t)).collect();
    Bounded::from_rounded(z.rows, z.cols, &out)
}

fn maximum(z: &[Rounded]) -> Rounded {
    let first = *z.first().expect("a softmax has classes");
    z.iter().fold(first, |m, z| m.max(*z))
}

#[cfg(test)]
mod tests {
    use super::super::rounding::exact_row;
    use super::super::testing::{Random, assert_close};
    use super::super::worst;
    use super::*;

    /// softmax(z / T) in f32, as a kernel does it.
    fn device_softmax(z: &[f32], t: f32) -> Vec<f32> {
        let m = z.iter().fold(f32::MIN, |m, z| m.max(*z));
        let e: Vec<f32> = z.iter().map(|z| ((z - m) / t).exp()).collect();
        let s: f32 = e.iter().sum();
        e.iter().map(|e| e / s).collect()
    }

    #[test]
    fn probabilities_sum_to_one_and_ignore_a_shift() {
        let t = Rounded::exact(3.0);
        let z = Random(8).row(10, 20.0);
        let q = softmax(&exact_row(&z), t);
        assert_close(q.iter().map(|q| q.value).sum(), 1.0, 1e-14);
        let shifted: Vec<f64> = z.iter().map(|z| z + 1e4).collect();
        for (a, b) in q.iter().zip(softmax(&exact_row(&shifted), t)) {
            assert_close(a.value, b.value, 1e-11);
        }
    }

    #[test]
    fn log_sum_exp_by_hand_and_far_out() {
        let z = exact_row(&[0.0, 3.0_f64.ln()]);
        assert_close(log_sum_exp(&z).value, 4.0_f64.ln(), 1e-15);
        assert_close(log_sum_exp(&exact_row(&[1e4, -1e4])).value, 1e4, 0.0);
        let sum = log_add_exp(z[0], z[1]);
        assert_close(sum.value, 4.0_f64.ln(), 1e-15);
    }

    #[test]
    fn f32_softmax_is_within_the_bound() {
        for (classes, size, t) in [(2, 1e4, 0.5), (10, 20.0, 1.0), (1000, 200.0, 100.0)] {
            let z = Random(9).matrix(3, classes, size);
            let device: Vec<f32> = (0..3)
                .flat_map(|r| {
                    let row: Vec<f32> = z.row(r).iter().map(|x| *x as f32).collect();
                    device_softmax(&row, t as f32)
                })
                .collect();
            let worst = worst(&device, &softmax_rows(&z, t), 1);
            assert!(worst.passes(), "{classes} classes: {worst:?}");
        }
    }

    #[test]
    fn the_bound_is_useful() {
        let z = Random(10).matrix(1, 10, 6.0);
        let q = softmax_rows(&z, 1.0);
        for (value, scale) in q.value.data.iter().zip(&q.scale.data) {
            assert!(scale / value < 250.0, "{} ulps", scale / value);
        }
        let wrong = softmax_rows(&z, 1.001);
        assert!(!worst(&wrong.value.to_f32(), &q, 1).passes());
    }
}
