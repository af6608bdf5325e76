//! Builds the step: data and teacher in, loss head, backward pass, optimiser.

pub mod feed;
pub mod infer;
pub mod step;

pub use feed::Feed;
pub use step::{Loss, Optimizer, Step, Teacher};
