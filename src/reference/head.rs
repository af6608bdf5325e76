//! The loss head of a batch: both losses, the metrics and d_z in one pass over the logits.

use super::losses::cross_entropy;
use super::{Bounded, Matrix, Rounded, SoftLoss, argmax};

/// L = hard_weight * mean(hard) + soft_weight * mean(soft), means over the batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Head {
    /// Weight of the cross-entropy with the labels.
    pub hard_weight: f64,
    /// Weight of the soft loss; T^2 is in the loss, not in here.
    pub soft_weight: f64,
    /// T of the soft loss.
    pub temperature: f64,
    /// e of the cross-entropy.
    pub label_smoothing: f64,
    /// What pulls towards the teacher.
    pub soft_loss: SoftLoss,
    /// Standardise both rows of logits before the soft loss (LSKD).
    pub standardise: bool,
}

/// What the head returns for a batch of B rows.
#[derive(Debug, Clone)]
pub struct HeadOutput {
    /// Unweighted hard loss of each row [B, 1], 0 where there is no label; n = 1.
    pub hard_loss: Bounded,
    /// Unweighted soft loss of each row [B, 1], 0 where there is no teacher; n = 1.
    pub soft_loss: Bounded,
    /// argmax z is the label; false where there is none.
    pub correct: Vec<bool>,
    /// argmax z is argmax v; false without a teacher.
    pub agrees: Vec<bool>,
    /// Gradient of L by the logits [B, K]; n = 1.
    pub d_z: Bounded,
}

impl Head {
    /// Hard labels alone: what trains a teacher.
    pub fn hard(label_smoothing: f64) -> Self {
        Self {
            hard_weight: 1.0,
            soft_weight: 0.0,
            temperature: 1.0,
            label_smoothing,
            soft_loss: SoftLoss::ForwardKl,
            standardise: false,
        }
    }

    /// Losses and gradient for z [B, K], the teacher's v [B, K] and the labels `[B]`.
    ///
    /// Every row weighs 1/B in d_z: not 1/(B K), and not one over the number of labelled rows, so a
    /// row's pull does not depend on which rows share its batch.
    pub fn evaluate(&self, z: &Matrix, v: Option<&Matrix>, labels: &[Option<usize>]) -> HeadOutput {
        let (batch, classes) = (z.rows, z.cols);
        assert_eq!(labels.len(), batch, "one label or none per row");
        if let Some(v) = v {
            assert_eq!((v.rows, v.cols), (batch, classes), "teacher logits");
        }
        let share = Rounded::parameter(1.0 / batch as f64);
        let hard_weight = Rounded::parameter(self.hard_weight);
        let soft_weight = Rounded::parameter(self.soft_weight);
        let zero = Rounded::exact(0.0);

        let (mut hard_loss, mut soft_loss) = (vec![zero; batch], vec![zero; batch]);
        let (mut correct, mut agrees) = (vec![false; batch], vec![false; batch]);
        let mut d_z = vec![zero; batch * classes];
        for b in 0..batch {
            let (z, v) = (z.row(b), v.map(|v| v.row(b)));
            let d_z = &mut d_z[b * classes..][..classes];
            if let Some(label) = labels[b] {
                let hard = cross_entropy(z, label, self.label_smoothing);
                hard_loss[b] = hard.loss;
                correct[b] = argmax(z) == label;
                for (d_z, hard) in d_z.iter_mut().zip(&hard.d_z) {
                    *d_z = hard_weight * *hard * share;
                }
            }
            if let Some(v) = v {
                agrees[b] = argmax(z) == argmax(v);
            }
            // A virtual teacher is made from the label; the row given for it is not read.
            let teacher = if self.soft_loss.needs_teacher() { v } else { Some(z) };
            // A row without a label has no soft term where that is made of it.
            let has_term = !self.soft_loss.needs_labels() || labels[b].is_some();
            if let Some(v) = teacher.filter(|_| has_term) {
                let temperature = self.temperature;
                let soft = self.soft_loss.evaluate(z, v, labels[b], temperature, self.standardise);
                soft_loss[b] = soft.loss;
                for (d_z, soft) in d_z.iter_mut().zip(&soft.d_z) {
                    *d_z = *d_z + soft_weight * *soft * share;
                }
            }
        }
        HeadOutput {
            hard_loss: Bounded::from_rounded(batch, 1, &hard_loss),
            soft_loss: Bounded::from_rounded(batch, 1, &soft_loss),
            correct,
            agrees,
            d_z: Bounded::from_rounded(batch, classes, &d_z),
        }
    }

    /// L of a batch.
    pub fn loss(&self, output: &HeadOutput) -> f64 {
        self.hard_weight * mean(&output.hard_loss) + self.soft_weight * mean(&output.soft_loss)
    }
}

/// The mean over the batch, unlabelled rows counting as 0.
pub fn mean(rows: &Bounded) -> f64 {
    rows.value.data.iter().sum::<f64>() / rows.value.rows as f64
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient};
    use super::*;

    const HEAD: Head = Head {
        hard_weight: 0.3,
        soft_weight: 0.7,
        temperature: 4.0,
        label_smoothing: 0.1,
        soft_loss: SoftLoss::ForwardKl,
        standardise: false,
    };

    #[test]
    fn d_z_is_the_gradient_of_the_mean_loss() {
        let mut random = Random(40);
        let (z, v) = (random.matrix(4, 5, 3.0), random.matrix(4, 5, 3.0));
        let labels = [Some(0), None, Some(4), Some(2)];
        let f = |z: &[f64]| HEAD.evaluate(&Matrix::new(4, 5, z.to_vec()), Some(&v), &labels);
        let gradient = f(&z.data).d_z.value.data;
        assert_gradient(&z.data, &gradient, |z| HEAD.loss(&f(z)), "head");
    }

    #[test]
    fn rows_without_label_or_teacher_drop_only_that_term() {
        let z = Matrix::new(1, 3, vec![1.0, 2.0, 3.0]);
        let v = Matrix::new(1, 3, vec![3.0, 2.0, 1.0]);
        let unlabelled = HEAD.evaluate(&z, Some(&v), &[None]);
        assert_close(unlabelled.hard_loss.value.data[0], 0.0, 0.0);
        assert!(unlabelled.soft_loss.value.data[0] > 0.0);
        assert_eq!(unlabelled.correct, [false]);
        let alone = HEAD.evaluate(&z, None, &[Some(2)]);
        assert_close(alone.soft_loss.value.data[0], 0.0, 0.0);
        assert_eq!((alone.correct[0], alone.agrees[0]), (true, false));
        let neither = HEAD.evaluate(&z, None, &[None]);
        assert!(neither.d_z.value.data.iter().all(|d| d.abs() < 1e-300));
    }

    #[test]
    fn a_row_pulls_the_same_in_any_company() {
        let mut random = Random(41);
        let (z, v) = (random.matrix(2, 3, 3.0), random.matrix(2, 3, 3.0));
        let pair = HEAD.evaluate(&z, Some(&v), &[Some(1), None]).d_z.value;
        let single = HEAD.evaluate(&z.gather(&[0]), Some(&v.gather(&[0])), &[Some(1)]).d_z.value;
        for c in 0..3 {
            assert_close(pair[(0, c)] * 2.0, single[(0, c)], 1e-15);
        }
    }

    #[test]
    fn the_lowest_index_wins_a_tie() {
        let z = Matrix::new(1, 3, vec![1.0, 1.0, 0.0]);
        let v = Matrix::new(1, 3, vec![0.0, 2.0, 2.0]);
        let output = HEAD.evaluate(&z, Some(&v), &[Some(0)]);
        assert_eq!((output.correct[0], output.agrees[0]), (true, false));
    }

    #[test]
    fn a_virtual_teacher_needs_no_teacher() {
        let head = Head { soft_loss: SoftLoss::VirtualTeacher { confidence: 0.9 }, ..HEAD };
        let z = Matrix::new(2, 3, vec![1.0, 2.0, 3.0, 0.0, 0.0, 1.0]);
        let output = head.evaluate(&z, None, &[Some(0), None]);
        assert!(output.soft_loss.value.data[0] > 0.0);
        assert_close(output.soft_loss.value.data[1], 0.0, 0.0);
    }

    #[test]
    fn dkd_leaves_rows_without_a_label_alone() {
        let head = Head { soft_loss: SoftLoss::Dkd { alpha: 1.0, beta: 8.0 }, ..HEAD };
        let z = Matrix::new(2, 3, vec![1.0, 2.0, 3.0, 0.0, 0.0, 1.0]);
        let v = Matrix::new(2, 3, vec![3.0, 2.0, 1.0, 0.0, 2.0, 1.0]);
        let output = head.evaluate(&z, Some(&v), &[Some(0), None]);
        assert!(output.soft_loss.value.data[0] > 0.0);
        assert_close(output.soft_loss.value.data[1], 0.0, 0.0);
        assert!(output.d_z.value.data[3..].iter().all(|d| d.abs() < 1e-300));
    }
}
