//! `w = w * min(1, limit / |w|)` for each row of a layer's weights: what comes into one unit.

use crate::error::Result;
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::program::Work;
use crate::gpu::{Call, Kernel, Plan, Tensor};

params! {
    /// `struct Params` of `shaders/max_norm.wgsl`.
    struct Params { groups: u32, replica: u32, norms_replica: u32, limit: f32 }
}

/// `shaders/max_norm.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "max_norm",
    source: shader!("max_norm"),
    params: Params::FIELDS,
    variants: || [false, true].map(constants).to_vec(),
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants(guarded: bool) -> Constants {
    vec![("GUARDED", Constant::Bool(guarded))]
}

/// Records the shortening of the rows of `weight` `[r, out, in]`. With `norms` `[r, slots, 4]`, as
/// [`norm`](super::norm) leaves them, a replica whose scale is 0 keeps its weights.
///
/// # Errors
/// As [`Plan::dispatch`].
pub fn record(
    plan: &mut Plan<'_>,
    label: &str,
    limit: f32,
    weight: &Tensor,
    norms: Option<&Tensor>,
) -> Result<()> {
    let nothing = plan.gpu.nothing()?;
    let [replicas, rows, _] = weight.shape;
    plan.dispatch(Call {
        kernel: &KERNEL,
        constants: constants(norms.is_some()),
        label,
        params: Params {
            groups: (weight.row_stride / 4) as u32,
            replica: (weight.replica_stride / 4) as u32,
            norms_replica: norms.map_or(0, |n| (n.replica_stride / 4) as u32),
            limit,
        },
        tensors: &[("weight", weight), ("norms", norms.unwrap_or(&nothing))],
        grid: [rows as u32, 1, replicas as u32],
        work: Work::new(2 * weight.span(), weight.span()),
    })
}
