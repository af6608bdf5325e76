//! The whole algorithm in f64 on the CPU, readable alone: the oracle every kernel is held to.
//!
//! Independence is the point: this room imports nothing but std, shares no code with the kernels,
//! and is itself held to central differences by its own tests. Plain loops, no cleverness.
//!
//! ```text
//! matrix      Matrix (row-major f64) and Bounded (a value and the scale of its admissible error)
//! rounding    Rounded: one number and how far an f32 device may be from it, carried through + - * / exp log
//! tolerance   the policy: gamma, worst; and the planted errors that it must catch
//! linalg      matmul, column sums
//! activation  identity, ReLU, tanh, GELU, and their derivatives
//! softmax     log-sum-exp, softmax and log-softmax with temperature
//! losses      one row: every hard and soft loss with its gradient
//! head        a batch: hard and soft losses, metrics and d_z
//! features    hints and similarity preserving, on a hidden layer
//! mlp         forward and backward of a multilayer perceptron
//! optimizer   SGD and Adam, in PyTorch's and Keras's conventions
//! train       one distillation step, and a loop over batches
//! metrics     errors, NLL, agreement, calibration, predictive KL
//! ```
//! Gradients are `d_` + the tensor's name, shapes stand in brackets: z [B, K] is batch by classes.
//! A violated precondition panics here: only tests and `doctor` call this room, and they own their inputs.

pub mod activation;
pub mod features;
pub mod head;
pub mod linalg;
pub mod losses;
pub mod matrix;
pub mod metrics;
pub mod mlp;
pub mod optimizer;
pub mod rounding;
pub mod softmax;
pub mod tolerance;
pub mod train;

pub use activation::Activation;
pub use head::{Head, HeadOutput};
pub use losses::SoftLoss;
pub use matrix::{Bounded, Matrix};
pub use mlp::Mlp;
pub use optimizer::{Convention, Optimizer, Rule};
pub use rounding::Rounded;
pub use tolerance::{Worst, gamma, worst, worst_ratio};

/// The index of the largest element; the lowest index wins a tie.
pub fn argmax(row: &[f64]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod testing;
