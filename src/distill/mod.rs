//! Builds the step: data and teacher in, loss head, backward pass, optimiser.

pub mod feed;
pub mod infer;
pub mod logits;
pub mod step;
pub mod teacher;

pub use feed::Feed;
pub use step::{Loss, Optimizer, Step};
pub use teacher::{Member, Teacher};
