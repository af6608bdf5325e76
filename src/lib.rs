//! limbeck
pub mod data;
pub mod distill;
pub mod error;
pub mod gpu;
pub mod kernels;
pub mod mlp;
pub mod reference;
pub mod rng;
pub mod train;
pub mod verify;
