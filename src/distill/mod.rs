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
