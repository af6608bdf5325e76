//! Repair of the output biases where classes were missing, or too common, in what a network learned from.
//!
//! Hinton, Vinyals and Dean (2015, section 3) distilled without any 3: the student knew what a 3 looks
//! like, by what its teacher said of other digits, but gave too little to it, and a higher bias was all
//! that it lacked.

use crate::error::{Error, Result};
use crate::reference::Matrix;

/// How near the mean probabilities come to the prior, in the sum of the absolute differences.
const TOLERANCE: f64 = 1e-6;
const MOST_ROUNDS: usize = 2000;

/// What to add to the output biases, and what comes of it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Repair {
    /// To be added to each class's bias; 0 for classes that are left alone.
    pub offsets: Vec<f64>,
    /// Mean probability of each class over the rows, at T = 1.
    pub before: Vec<f64>,
    /// The same with the offsets.
    pub after: Vec<f64>,
    /// Rounds that it took, 0 for given offsets.
    pub rounds: usize,
}

impl Repair {
    /// Offsets of the named classes under which the mean probability of each over the rows of `logits`
    /// [N, K] is `prior[class]`. With the labels' own shares for a prior these are the biases of the least
    /// cross-entropy. Iterative scaling (Darroch and Ratcliff 1972), which approaches it from any start.
    ///
    /// # Errors
    /// [`Error::Usage`] where a named class has no share, or all classes' shares do not sum to 1.
    pub fn to_prior(logits: &Matrix, classes: &[usize], prior: &[f64]) -> Result<Self> {
        if let Some(class) = classes.iter().find(|c| !(prior[**c] > 0.0 && prior[**c] < 1.0)) {
            let found = format!("{} of class {class}", prior[*class]);
            return Err(Error::usage("prior", "a share above 0 and below 1 of each class to repair", found)
                .with_hint("use rows that have the class, or --prior uniform, or --add CLASS:AMOUNT"));
        }
        let share: f64 = classes.iter().map(|c| prior[*c]).sum();
        if share > 1.0 + 1e-9 {
            return Err(Error::usage("prior", "shares of at most 1 together", share.to_string()));
        }
        let mut offsets = vec![0.0; logits.cols];
        let before = mean_probabilities(logits, &offsets);
        let mut after = before.clone();
        for rounds in 0..MOST_ROUNDS {
            let off: f64 = classes.iter().map(|c| (prior[*c] - after[*c]).abs()).sum();
            if off < TOLERANCE {
                return Ok(Self { offsets, before, after, rounds });
            }
            for c in classes {
                offsets[*c] += (prior[*c] / after[*c].max(f64::MIN_POSITIVE)).ln();
            }
            after = mean_probabilities(logits, &offsets);
        }
        Ok(Self { offsets, before, after, rounds: MOST_ROUNDS })
    }

    /// Offsets as given.
    pub fn by(logits: &Matrix, offsets: Vec<f64>) -> Self {
        let before = mean_probabilities(logits, &vec![0.0; logits.cols]);
        let after = mean_probabilities(logits, &offsets);
        Self { offsets, before, after, rounds: 0 }
    }

    /// The logits as the repaired network gives them.
    pub fn apply(&self, logits: &Matrix) -> Matrix {
        let add = |(i, z): (usize, &f64)| z + self.offsets[i % logits.cols];
        Matrix::new(logits.rows, logits.cols, logits.data.iter().enumerate().map(add).collect())
    }
}

fn mean_probabilities(logits: &Matrix, offsets: &[f64]) -> Vec<f64> {
    let mut mean = vec![0.0; logits.cols];
    let mut row = vec![0.0; logits.cols];
    for r in 0..logits.rows {
        row.iter_mut().zip(logits.row(r)).zip(offsets).for_each(|((x, z), b)| *x = z + b);
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter_mut().for_each(|x| *x = (*x - top).exp());
        let share = 1.0 / (row.iter().sum::<f64>() * logits.rows as f64);
        mean.iter_mut().zip(&row).for_each(|(m, x)| *m += x * share);
    }
    mean
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{self, stream};

    fn logits(rows: usize, k: usize) -> Matrix {
        let draw = |i: usize| f64::from(rng::block(3, stream::CHECK, i as u64)[0]) / f64::from(u32::MAX);
        Matrix::new(rows, k, (0..rows * k).map(|i| 12.0 * draw(i) - 6.0).collect())
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2.0 * TOLERANCE)
    }

    #[test]
    fn the_mean_probabilities_become_the_prior() {
        let z = logits(200, 4);
        let prior = [0.1, 0.2, 0.3, 0.4];
        let all = Repair::to_prior(&z, &[0, 1, 2, 3], &prior).expect("a repair");
        assert!(close(&all.after, &prior), "{all:?}");
        assert!(close(&mean_probabilities(&all.apply(&z), &[0.0; 4]), &all.after));
        let one = Repair::to_prior(&z, &[2], &prior).expect("a repair");
        assert!(close(&one.after[2..3], &prior[2..3]) && one.offsets[0].abs() < f64::EPSILON, "{one:?}");
    }

    #[test]
    fn a_bias_that_was_taken_away_is_found_again() {
        let z = logits(500, 3);
        let prior = mean_probabilities(&z, &[0.0; 3]);
        let hurt = Repair::by(&z, vec![0.0, -3.5, 0.0]);
        assert!(hurt.after[1] < 0.5 * hurt.before[1]);
        let found = Repair::to_prior(&hurt.apply(&z), &[1], &prior).expect("a repair");
        assert!((found.offsets[1] - 3.5).abs() < 1e-3, "{found:?}");
    }

    #[test]
    fn with_the_labels_shares_no_other_bias_has_a_lower_cross_entropy() {
        let z = logits(300, 3);
        let label = |r: usize| if r.is_multiple_of(5) { 0 } else { 1 + r % 2 };
        let prior = [0.2, 0.4, 0.4];
        let repair = Repair::to_prior(&z, &[0, 1, 2], &prior).expect("a repair");
        let nll = |offsets: &[f64]| -> f64 {
            let z = Repair::by(&z, offsets.to_vec()).apply(&z);
            let loss = |r: usize| {
                let row = z.row(r);
                row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[label(r)]
            };
            (0..z.rows).map(loss).sum::<f64>() / z.rows as f64
        };
        let best = nll(&repair.offsets);
        for (c, step) in [(0, 0.05), (0, -0.05), (1, 0.05), (2, -0.05)] {
            let mut moved = repair.offsets.clone();
            moved[c] += step;
            assert!(nll(&moved) > best, "class {c} by {step}");
        }
    }

    #[test]
    fn a_class_without_a_share_cannot_be_repaired() {
        let error = Repair::to_prior(&logits(5, 3), &[0, 1], &[0.0, 0.5, 0.5]).expect_err("no share");
        assert_eq!(error.exit_code(), 2);
    }
}
