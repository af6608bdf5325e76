//! Feature losses on a hidden layer: FitNets hints and similarity preserving.

use super::rounding::dot;
use super::{Bounded, Matrix, Rounded};

/// A feature loss and its gradient.
#[derive(Debug, Clone)]
pub struct FeatureLoss {
    /// `[B]`, without the weight; their mean is the batch's loss.
    pub loss: Vec<Rounded>,
    /// Of weight times the batch's loss, with respect to the loss's first argument; n = 1.
    pub d: Bounded,
}

/// FitNets (Romero et al. 2015): the mean over batch and width of (r - h)^2, where r [B, width] is a
/// linear regression of the student's hidden layer and h [B, width] is the teacher's.
pub fn hint(r: &Matrix, h: &Matrix, weight: f64) -> FeatureLoss {
    assert_eq!((r.rows, r.cols), (h.rows, h.cols), "a regressor ends at its target");
    let width = Rounded::exact(r.cols as f64);
    // One rounding for the weight, one for two over rows and width.
    let scale = Rounded::parameter(2.0 * weight) / Rounded::exact((r.rows * r.cols) as f64);
    let mut result = FeatureLoss { loss: Vec::new(), d: Bounded::exact(Matrix::zeros(r.rows, r.cols)) };
    let mut d = Vec::with_capacity(r.data.len());
    for i in 0..r.rows {
        let pairs = r.row(i).iter().zip(h.row(i));
        let gap: Vec<Rounded> = pairs.map(|(r, h)| Rounded::exact(*r) - Rounded::exact(*h)).collect();
        result.loss.push(dot(&gap, &gap) / width);
        d.extend(gap.into_iter().map(|g| scale * g));
    }
    result.d = Bounded::from_rounded(r.rows, r.cols, &d);
    result
}

/// Similarity preserving (Tung and Mori 2019): |G_s - G_t|^2 / B^2, where the rows of G are those of
/// the Gram matrices p = X X' [B, B], divided by their norms. The gradient is with respect to p_s; the
/// features' own is (d + d') X. A row of norm 0 has neither direction nor gradient.
pub fn similarity(p_s: &Matrix, p_t: &Matrix, weight: f64) -> FeatureLoss {
    let b = p_s.rows;
    assert_eq!([p_s.cols, p_t.rows, p_t.cols], [b; 3], "Gram matrices of one batch");
    let batch = Rounded::exact(b as f64);
    let zero = Rounded::exact(0.0);
    let inverse_norm = |row: &[Rounded]| match dot(row, row) {
        square if square.value > 0.0 => Rounded::exact(1.0) / square.sqrt(),
        _ => zero,
    };
    let scale = Rounded::parameter(2.0 * weight) / (batch * batch);
    let (mut loss, mut d) = (Vec::new(), Vec::with_capacity(b * b));
    for i in 0..b {
        let [s, t] = [p_s, p_t].map(|p| super::rounding::exact_row(p.row(i)));
        let (over_s, over_t) = (inverse_norm(&s), inverse_norm(&t));
        let g: Vec<Rounded> = s.iter().map(|s| *s * over_s).collect();
        let gap: Vec<Rounded> = g.iter().zip(&t).map(|(g, t)| *g - *t * over_t).collect();
        loss.push(dot(&gap, &gap) / batch);
        let along = dot(&gap, &g);
        d.extend(gap.iter().zip(&g).map(|(u, g)| scale * (*u - *g * along) * over_s));
    }
    FeatureLoss { loss, d: Bounded::from_rounded(b, b, &d) }
}

#[cfg(test)]
mod tests {
    use super::super::linalg::matmul;
    use super::super::rounding::{U, hostile};
    use super::super::testing::{Random, assert_close, assert_gradient};
    use super::*;

    fn mean(loss: &FeatureLoss) -> f64 {
        loss.loss.iter().map(|l| l.value).sum::<f64>() / loss.loss.len() as f64
    }

    #[test]
    fn a_hint_by_hand() {
        let (r, h) =
            (Matrix::new(2, 2, vec![1.0, 2.0, 3.0, 4.0]), Matrix::new(2, 2, vec![1.0, 0.0, 0.0, 4.0]));
        let hint = hint(&r, &h, 0.5);
        assert_close(mean(&hint), (4.0 + 9.0) / 4.0, 1e-15);
        assert_eq!(hint.d.value.data, [0.0, 0.5, 0.75, 0.0]);
    }

    #[test]
    fn both_match_central_differences_through_their_features() {
        let mut random = Random(70);
        let (x, t) = (random.matrix(5, 3, 1.0), random.matrix(5, 4, 1.0));
        let (h, w) = (random.matrix(5, 4, 1.0), random.matrix(4, 3, 1.0));
        let gram = |x: &Matrix| matmul(x, x, false, true).value;
        let p_t = gram(&t);

        let d = similarity(&gram(&x), &p_t, 0.7).d.value;
        let both = Matrix::new(5, 5, d.data.iter().zip(d.transposed().data).map(|(a, b)| a + b).collect());
        let d_x = matmul(&both, &x, false, false).value;
        let of_x = |x: &[f64]| 0.7 * mean(&similarity(&gram(&Matrix::new(5, 3, x.to_vec())), &p_t, 0.7));
        assert_gradient(&x.data, &d_x.data, of_x, "similarity");

        let regress = |x: &Matrix| matmul(x, &w, false, true).value;
        let d_x = matmul(&hint(&regress(&x), &h, 0.7).d.value, &w, false, false).value;
        let of_x = |x: &[f64]| 0.7 * mean(&hint(&regress(&Matrix::new(5, 3, x.to_vec())), &h, 0.7));
        assert_gradient(&x.data, &d_x.data, of_x, "hint");
    }

    #[test]
    fn nothing_is_left_where_the_features_agree_and_a_dead_row_has_no_direction() {
        let mut random = Random(71);
        let x = random.matrix(4, 6, 2.0);
        let mut p = matmul(&x, &x, false, true).value;
        let same = similarity(&p, &p, 1.0);
        assert!(same.loss.iter().all(|l| l.value == 0.0) && same.d.value.data.iter().all(|d| *d == 0.0));
        // Scale does not matter: only where the rows point.
        let scaled = p.map(|x| 3.0 * x);
        assert!(mean(&similarity(&p, &scaled, 1.0)) < 1e-30);
        p.row_mut(1).fill(0.0);
        let dead = similarity(&p, &scaled, 1.0);
        assert!(dead.d.value.row(1).iter().all(|d| *d == 0.0));
        assert_close(dead.loss[1].value, 1.0 / 4.0, 1e-15);
    }

    #[test]
    fn a_device_that_conforms_stays_within_the_bounds() {
        for seed in 0..50 {
            let mut random = Random(seed);
            let (x, t) = (random.matrix(6, 6, 1.0), random.matrix(6, 6, 1.0));
            for f in [hint, similarity] {
                let exact = f(&x, &t, 0.3);
                let device = hostile::run(seed, || f(&x, &t, 0.3));
                for (e, d) in exact.loss.iter().zip(&device.loss) {
                    assert!((e.value - d.value).abs() <= e.error * U);
                }
                for (i, e) in exact.d.value.data.iter().enumerate() {
                    assert!((e - device.d.value.data[i]).abs() <= exact.d.scale.data[i] * U);
                }
            }
        }
    }
}
