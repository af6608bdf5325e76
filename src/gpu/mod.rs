//! Knows wgpu, knows no mathematics: devices, buffers, pipelines, plans and late readback.
//!
//! Every wgpu literal of the crate stands in this room, since wgpu's descriptors gain fields
//! every quarter, and so does every `unsafe` block.

pub mod adapter;
pub mod device;
#[cfg_attr(target_vendor = "apple", path = "no_direct.rs")]
mod direct;
pub mod environment;
#[cfg_attr(target_vendor = "apple", path = "no_image.rs")]
mod image;
pub mod pipeline;
pub mod plan;
pub mod profile;
pub mod program;
pub mod readback;
pub mod surroundings;
pub mod tensor;
pub mod twins;

pub use adapter::AdapterChoice;
pub use device::Gpu;
pub use pipeline::{Constant, Kernel};
pub use plan::{Call, Plan};
pub use program::Program;
pub use tensor::Tensor;
