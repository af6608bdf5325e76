//! The numbers that change from step to step: one row per slot of the submission and replica,
//! written once per submission. A second write before the submit would overwrite the first for
//! every step in it, so all steps of a submission lie side by side and a kernel finds its own by
//! the slot that the plan hands it.

use crate::error::Result;
use crate::gpu::program::SLOTS;
use crate::gpu::{Gpu, Tensor};

params! {
    /// One step of one replica, as every shader's `struct Step` declares it. A shader takes it whole, `steps[i]` and not
    /// `steps[i].rows`, for some drivers to get it as texels ([`crate::gpu::twins`]).
    struct Step {
        step: u32, row_start: u32, rows: u32, seed: u32,
        lr: f32, momentum: f32, correction_1: f32, correction_2: f32,
        temperature: f32, hard_weight: f32, soft_weight: f32, smoothing: f32,
        loss_a: f32, loss_b: f32, loss_c: f32, loss_d: f32,
    }
}

/// A zeroed ring for `replicas` replicas.
///
/// # Errors
/// [`crate::Error::Device`] where the device refuses the memory.
pub fn ring(gpu: &Gpu, replicas: usize) -> Result<Tensor> {
    let words = size_of::<Step>() / 4;
    Tensor::zeros(gpu, "steps", [1, SLOTS as usize, replicas * words])
}

/// Writes the steps of the next submission: `steps[slot * replicas + replica]`.
///
/// # Errors
/// [`crate::Error::Usage`] where there are more steps than slots.
pub fn write(gpu: &Gpu, ring: &Tensor, steps: &[Step]) -> Result<()> {
    let per_slot = ring.shape[2] * 4 / size_of::<Step>();
    let view = ring.rows(0..steps.len() / per_slot);
    view.write::<u32>(gpu, bytemuck::cast_slice(steps))
}
