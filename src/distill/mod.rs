//! Builds the step: data and teacher in, loss head, backward pass, optimiser.

pub mod features;
pub mod feed;
pub mod infer;
pub mod logits;
pub mod loss;
pub mod micro;
pub mod regularize;
pub mod step;
pub mod teacher;

pub use features::{Feature, Pull};
pub use feed::Feed;
pub use loss::Loss;
pub use micro::Micro;
pub use regularize::Regularize;
pub use step::{Guard, Optimizer, Step};
pub use teacher::{Member, Teacher};

/// FLOPs of the matrix products of one step on `rows` rows: the forward pass of teachers with `asked`
/// weights and, of each of `replicas` students, the forward pass, the weights' gradients and, but for the
/// first layer, the inputs' gradients.
pub fn step_flops(asked: f64, student: &[usize], replicas: usize, rows: usize) -> f64 {
    let products = student.windows(2).map(|s| s[0] as f64 * s[1] as f64);
    let trained: f64 = products.enumerate().map(|(i, p)| if i == 0 { 2.0 * p } else { 3.0 * p }).sum();
    2.0 * rows as f64 * (asked + replicas as f64 * trained)
}
