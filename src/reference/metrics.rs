//! What to say about a classifier beyond its loss. z and v are logits [N, K], labels are `[N]`.

use super::losses::{cross_entropy, predictive_kl as kl};
use super::rounding::exact_row;
use super::softmax::softmax;
use super::{Matrix, Rounded, argmax};

/// Rows whose argmax is not the label.
pub fn errors(z: &Matrix, labels: &[usize]) -> usize {
    assert_eq!(z.rows, labels.len(), "one label per row");
    (0..z.rows).filter(|r| argmax(z.row(*r)) != labels[*r]).count()
}

/// 1 - errors / N.
pub fn accuracy(z: &Matrix, labels: &[usize]) -> f64 {
    1.0 - errors(z, labels) as f64 / z.rows as f64
}

/// Mean negative log-likelihood at T = 1, in nats.
pub fn nll(z: &Matrix, labels: &[usize]) -> f64 {
    mean_over_rows(z, |r| cross_entropy(z.row(r), labels[r], 0.0).loss.value)
}

/// Share of rows where both have the same argmax.
pub fn agreement(z: &Matrix, v: &Matrix) -> f64 {
    mean_over_rows(z, |r| match argmax(z.row(r)) == argmax(v.row(r)) {
        true => 1.0,
        false => 0.0,
    })
}

/// `confusion[label][prediction]` counts rows.
pub fn confusion(z: &Matrix, labels: &[usize]) -> Vec<Vec<usize>> {
    let mut counts = vec![vec![0; z.cols]; z.cols];
    for (r, label) in labels.iter().enumerate() {
        counts[*label][argmax(z.row(r))] += 1;
    }
    counts
}

/// Share of each class's rows that were recognised; none for a class without rows.
pub fn recall(z: &Matrix, labels: &[usize]) -> Vec<Option<f64>> {
    let of_class = |(class, counts): (usize, &Vec<usize>)| {
        let rows: usize = counts.iter().sum();
        (rows > 0).then(|| counts[class] as f64 / rows as f64)
    };
    confusion(z, labels).iter().enumerate().map(of_class).collect()
}

/// Brier score: mean over rows of sum over classes of (q - y)^2; 0 is perfect, 2 the worst.
pub fn brier(z: &Matrix, labels: &[usize]) -> f64 {
    mean_over_rows(z, |r| {
        let q = probabilities(z.row(r));
        let y = |i| if i == labels[r] { 1.0 } else { 0.0 };
        q.iter().enumerate().map(|(i, q)| (q - y(i)).powi(2)).sum()
    })
}

/// Bins of the expected calibration error.
pub const BINS: usize = 15;

/// Expected calibration error (Guo et al. 2017): over equal bins (lo, hi] of the confidence max q,
/// the mean of |accuracy - mean confidence| weighted by the bin's rows.
pub fn expected_calibration_error(z: &Matrix, labels: &[usize]) -> f64 {
    let mut surplus = [0.0; BINS];
    for (r, label) in labels.iter().enumerate() {
        let prediction = argmax(z.row(r));
        let confidence = probabilities(z.row(r))[prediction];
        let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        let hit = if prediction == *label { 1.0 } else { 0.0 };
        // |hits - sum of confidences| / N is the bin's weight times its gap.
        surplus[bin] += hit - confidence;
    }
    surplus.iter().map(|s: &f64| s.abs()).sum::<f64>() / z.rows as f64
}

/// Mean KL(teacher, student) and mean KL(student, teacher) of the predictions at T = 1.
pub fn predictive_kl(z: &Matrix, v: &Matrix) -> (f64, f64) {
    (mean_over_rows(z, |r| kl(v.row(r), z.row(r))), mean_over_rows(z, |r| kl(z.row(r), v.row(r))))
}

fn probabilities(z: &[f64]) -> Vec<f64> {
    let q = softmax(&exact_row(z), Rounded::exact(1.0));
    q.iter().map(|q| q.value).collect()
}

fn mean_over_rows(z: &Matrix, f: impl Fn(usize) -> f64) -> f64 {
    (0..z.rows).map(f).sum::<f64>() / z.rows as f64
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_close;
    use super::*;

    /// Rows that say (3/4, 1/4), (1/4, 3/4), (3/4, 1/4), (1/2, 1/2).
    fn logits() -> Matrix {
        let l = 3.0_f64.ln();
        Matrix::new(4, 2, vec![l, 0.0, 0.0, l, l, 0.0, 0.0, 0.0])
    }

    #[test]
    fn hits_by_hand() {
        let (z, labels) = (logits(), [0, 1, 1, 1]);
        assert_eq!(errors(&z, &labels), 2);
        assert_close(accuracy(&z, &labels), 0.5, 0.0);
        assert_eq!(confusion(&z, &labels), [vec![1, 0], vec![2, 1]]);
        assert_eq!(recall(&z, &labels), [Some(1.0), Some(1.0 / 3.0)]);
        assert_eq!(recall(&z, &[0, 0, 0, 0]), [Some(0.75), None]);
    }

    #[test]
    fn scores_by_hand() {
        let (z, labels) = (logits(), [0, 1, 1, 1]);
        let expected = (2.0 * (4.0_f64 / 3.0).ln() + 4.0_f64.ln() + 2.0_f64.ln()) / 4.0;
        assert_close(nll(&z, &labels), expected, 1e-14);
        let expected = (0.125 + 0.125 + 1.125 + 0.5) / 4.0;
        assert_close(brier(&z, &labels), expected, 1e-14);
        // Bin of 3/4: 2 of 3 right; bin of 1/2: 0 of 1.
        let expected = (3.0 / 4.0) * (0.75 - 2.0 / 3.0) + (1.0 / 4.0) * 0.5;
        assert_close(expected_calibration_error(&z, &labels), expected, 1e-14);
    }

    #[test]
    fn agreement_and_divergence_by_hand() {
        let z = logits();
        assert_close(agreement(&z, &z), 1.0, 0.0);
        assert_close(predictive_kl(&z, &z).0, 0.0, 1e-15);
        let uniform = Matrix::zeros(4, 2);
        assert_close(agreement(&z, &uniform), 0.75, 0.0);
        let (teacher_first, student_first) = predictive_kl(&z, &uniform);
        let row = 0.5 * (2.0_f64 / 3.0).ln() + 0.5 * 2.0_f64.ln();
        assert_close(teacher_first, 0.75 * row, 1e-14);
        let row = 0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln();
        assert_close(student_first, 0.75 * row, 1e-14);
    }
}
