//! `m = momentum m + g; w = w - lr m` (Nesterov: `w - lr (g + momentum m)`), PyTorch's convention.

use crate::error::Result;
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::plan::Work;
use crate::gpu::{Call, Kernel, Plan, Tensor};

params! {
    /// `struct Params` of `shaders/sgd.wgsl`.
    struct Params { groups: u32, replicas: u32, weight_decay: f32, width: u32 }
}

/// `shaders/sgd.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "sgd",
    source: shader!("sgd"),
    params: Params::FIELDS,
    variants: || [false, true].map(constants).to_vec(),
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants(nesterov: bool) -> Constants {
    vec![("NESTEROV", Constant::Bool(nesterov))]
}

/// Workgroups of 64 vec4 that cover `groups`, folded into x and y below the 65,535 limit.
pub(crate) fn fold(groups: usize) -> [u32; 2] {
    let workgroups = groups.div_ceil(64) as u32;
    let rows = workgroups.div_ceil(32_768).max(1);
    [workgroups.div_ceil(rows), rows]
}

/// Records one update of `weight` from `gradient`, both whole arenas `[r, 1, len]`. Learning rate
/// and momentum are the step's.
///
/// # Errors
/// As [`Plan::dispatch`].
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings, one each")]
pub fn record(
    plan: &mut Plan<'_>,
    label: &str,
    nesterov: bool,
    weight_decay: f32,
    steps: &Tensor,
    gradient: &Tensor,
    weight: &Tensor,
    momentum: &Tensor,
) -> Result<()> {
    let groups = weight.row_stride / 4;
    let replicas = weight.shape[0] as u32;
    let [width, height] = fold(groups);
    plan.dispatch(Call {
        kernel: &KERNEL,
        constants: constants(nesterov),
        label,
        params: Params {
            groups: groups as u32,
            replicas,
            weight_decay,
            width,
        },
        tensors: &[
            ("steps", steps),
            ("gradient", gradient),
            ("weight", weight),
            ("momentum", momentum),
        ],
        grid: [width, height, replicas],
        work: Work::new(4 * weight.span(), 5 * weight.span()),
    })
}
