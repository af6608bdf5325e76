//! One distillation step, and a loop over batches.

use super::head::mean;
use super::{Head, Matrix, Mlp, Optimizer};

/// The losses and hits of one step, before its update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepLosses {
    /// hard_weight * hard + soft_weight * soft.
    pub loss: f64,
    /// Mean hard loss over the batch, unlabelled rows counting as 0.
    pub hard_loss: f64,
    /// Mean soft loss over the batch.
    pub soft_loss: f64,
    /// Rows whose argmax is their label.
    pub correct: usize,
    /// Rows whose argmax is the teacher's.
    pub agrees: usize,
}

/// forward -> head -> backward -> update. The teacher is only its logits [B, K]: nothing to train.
pub fn distill_step(
    student: &mut Mlp,
    optimizer: &mut Optimizer,
    learning_rate: f64,
    head: &Head,
    x: &Matrix,
    labels: &[Option<usize>],
    teacher_logits: Option<&Matrix>,
) -> StepLosses {
    let trace = student.forward(x);
    let output = head.evaluate(trace.logits(), teacher_logits, labels);
    let gradients = student.backward(&trace, &output.d_z.value);
    optimizer.step(learning_rate, &mut student.parameters_mut(), &gradients.tensors());
    let count = |hits: &[bool]| hits.iter().filter(|hit| **hit).count();
    StepLosses {
        loss: head.loss(&output),
        hard_loss: mean(&output.hard_loss),
        soft_loss: mean(&output.soft_loss),
        correct: count(&output.correct),
        agrees: count(&output.agrees),
    }
}

/// A transfer set: inputs, a label or none for each, and the frozen teacher's logits.
#[derive(Debug, Clone)]
pub struct TransferSet<'a> {
    /// [N, features].
    pub x: &'a Matrix,
    /// `[N]`.
    pub labels: &'a [Option<usize>],
    /// [N, K]; none trains on the labels alone.
    pub teacher_logits: Option<&'a Matrix>,
}

/// One step per batch of row indices, in the given order.
pub fn distill(
    student: &mut Mlp,
    optimizer: &mut Optimizer,
    learning_rate: f64,
    head: &Head,
    set: &TransferSet,
    batches: &[Vec<usize>],
) -> Vec<StepLosses> {
    let step = |batch: &Vec<usize>| {
        let labels: Vec<Option<usize>> = batch.iter().map(|i| set.labels[*i]).collect();
        let teacher_logits = set.teacher_logits.map(|v| v.gather(batch));
        distill_step(
            student,
            optimizer,
            learning_rate,
            head,
            &set.x.gather(batch),
            &labels,
            teacher_logits.as_ref(),
        )
    };
    batches.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::super::metrics::errors;
    use super::super::testing::Random;
    use super::super::{Activation, Convention, Rule, SoftLoss};
    use super::*;

    fn network(layers: &[usize], activation: Activation, seed: u64) -> Mlp {
        let mut random = Random(seed);
        let mut network = Mlp::zeros(layers, activation);
        for weight in &mut network.weights {
            let size = (6.0 / (weight.rows + weight.cols) as f64).sqrt();
            weight.data = random.row(weight.data.len(), size);
        }
        network
    }

    fn batches(rows: usize, size: usize, epochs: usize) -> Vec<Vec<usize>> {
        let indices: Vec<usize> = (0..rows).cycle().take(rows * epochs).collect();
        indices.chunks(size).map(<[usize]>::to_vec).collect()
    }

    fn adam() -> Optimizer {
        Optimizer::new(Rule::Adam {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            decoupled: false,
            convention: Convention::PyTorch,
        })
    }

    /// Points of the plane in three sectors: not linearly separable from the origin's side alone.
    fn sectors(rows: usize) -> (Matrix, Vec<Option<usize>>) {
        let x = Random(60).matrix(rows, 2, 1.0);
        let sector = |r| {
            let turn = x[(r, 1)].atan2(x[(r, 0)]) / std::f64::consts::TAU + 0.5;
            Some(((turn * 3.0) as usize).min(2))
        };
        let labels = (0..rows).map(sector).collect();
        (x, labels)
    }

    #[test]
    fn a_teacher_learns_and_its_student_follows_without_a_label() {
        let (x, labels) = sectors(300);
        let truth: Vec<usize> = labels.iter().map(|l| l.expect("labelled")).collect();
        let mut teacher = network(&[2, 16, 3], Activation::Relu, 61);
        let labelled = TransferSet { x: &x, labels: &labels, teacher_logits: None };
        let batches = batches(300, 20, 40);
        distill(&mut teacher, &mut adam(), 0.01, &Head::hard(0.0), &labelled, &batches);
        let v = teacher.forward(&x).logits().clone();
        assert!(errors(&v, &truth) < 15, "teacher: {}", errors(&v, &truth));

        for activation in [Activation::Relu, Activation::Tanh, Activation::Gelu] {
            let mut student = network(&[2, 8, 3], activation, 62);
            let head = Head { hard_weight: 0.0, soft_weight: 1.0, temperature: 2.0, ..Head::hard(0.0) };
            let unlabelled = TransferSet { x: &x, labels: &vec![None; 300], teacher_logits: Some(&v) };
            let log = distill(&mut student, &mut adam(), 0.01, &head, &unlabelled, &batches);
            let (first, last) = (log[0].loss, log[log.len() - 1].loss);
            assert!(last < 0.1 * first, "{activation:?}: {first} -> {last}");
            let wrong = errors(student.forward(&x).logits(), &truth);
            assert!(wrong < 25, "{activation:?} student: {wrong} errors");
        }
    }

    #[test]
    fn every_soft_loss_trains() {
        let (x, labels) = sectors(60);
        let v = network(&[2, 8, 3], Activation::Tanh, 63).forward(&x).logits().map(|v| 3.0 * v);
        let set = TransferSet { x: &x, labels: &labels, teacher_logits: Some(&v) };
        for soft_loss in [
            SoftLoss::ForwardKl,
            SoftLoss::ReverseKl,
            SoftLoss::Symmetric,
            SoftLoss::Jsd { beta: 0.5 },
            SoftLoss::Dkd { alpha: 1.0, beta: 2.0 },
            SoftLoss::Mse,
            SoftLoss::Sigmoid,
            SoftLoss::VirtualTeacher { confidence: 0.9 },
        ] {
            for standardise in [false, true] {
                let head = Head {
                    hard_weight: 0.0,
                    soft_weight: 1.0,
                    temperature: 2.0,
                    label_smoothing: 0.0,
                    soft_loss,
                    standardise,
                };
                let mut student = network(&[2, 8, 3], Activation::Gelu, 64);
                let mut sgd = Optimizer::new(Rule::Sgd {
                    momentum: 0.9,
                    nesterov: true,
                    weight_decay: 0.0,
                    convention: Convention::Keras,
                });
                // The full batch, so that the loss of a step is the loss of the set.
                let log = distill(&mut student, &mut sgd, 0.02, &head, &set, &batches(60, 60, 150));
                let (first, last) = (log[0].soft_loss, log[log.len() - 1].soft_loss);
                assert!(last < 0.7 * first, "{soft_loss:?} {standardise}: {first} -> {last}");
            }
        }
    }

    #[test]
    fn a_student_with_the_teachers_weights_stays() {
        let (x, _) = sectors(20);
        let mut student = network(&[2, 4, 3], Activation::Tanh, 65);
        let before = student.clone();
        let v = student.forward(&x).logits().clone();
        let head = Head { hard_weight: 0.0, soft_weight: 1.0, ..Head::hard(0.0) };
        let mut sgd = Optimizer::new(Rule::Sgd {
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
            convention: Convention::PyTorch,
        });
        let losses = distill_step(&mut student, &mut sgd, 1.0, &head, &x, &[None; 20], Some(&v));
        assert_eq!(student, before);
        assert_eq!((losses.correct, losses.agrees), (0, 20));
    }
}
