//! `m = momentum m + g; w = w - lr m` (Nesterov: `w - lr (g + momentum m)`), PyTorch's convention.

use crate::error::{Error, Result};
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::program::Work;
use crate::gpu::{Call, Kernel, Plan, Tensor};

params! {
    /// `struct Params` of `shaders/sgd.wgsl`.
    struct Params { groups: u32, replicas: u32, weight_decay: f32, width: u32, norms_replica: u32 }
}

/// Both settings of two switches.
pub(super) const FLAGS: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

/// `shaders/sgd.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "sgd",
    source: shader!("sgd"),
    params: Params::FIELDS,
    variants: || FLAGS.map(|[a, b]| constants(a, b)).to_vec(),
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants(nesterov: bool, scaled: bool) -> Constants {
    vec![("NESTEROV", Constant::Bool(nesterov)), ("SCALED", Constant::Bool(scaled))]
}

/// Workgroups of 64 that cover `groups`, folded into x and y below the 65,535 limit.
pub(crate) fn fold(groups: usize) -> [u32; 2] {
    let workgroups = groups.div_ceil(64) as u32;
    let rows = workgroups.div_ceil(32_768).max(1);
    [workgroups.div_ceil(rows), rows]
}

/// Groups of eight parameters in one replica of an arena.
pub(crate) fn groups(arena: &Tensor) -> Result<usize> {
    match arena.row_stride.is_multiple_of(8) {
        true => Ok(arena.row_stride / 8),
        false => Err(Error::usage(
            "parameters in an arena",
            "a multiple of 8, padding and all",
            arena.row_stride.to_string(),
        )),
    }
}

/// Records one update of `weight` from `gradient`, both whole arenas `[r, 1, len]`. Learning rate
/// and momentum are the step's. With `norms` `[r, slots, 4]`, as [`norm`](super::norm) leaves them, the
/// gradient is scaled, and a replica whose scale is 0 keeps its weights and its velocity.
///
/// # Errors
/// As [`Plan::dispatch`]; [`Error::Usage`] where an arena is no multiple of 8 long.
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
    norms: Option<&Tensor>,
) -> Result<()> {
    let nothing = plan.gpu.nothing()?;
    let groups = groups(weight)?;
    let replicas = weight.shape[0] as u32;
    let [width, height] = fold(groups);
    plan.dispatch(Call {
        kernel: &KERNEL,
        constants: constants(nesterov, norms.is_some()),
        label,
        params: Params {
            groups: groups as u32,
            replicas,
            weight_decay,
            width,
            norms_replica: norms.map_or(0, |n| (n.replica_stride / 4) as u32),
        },
        tensors: &[
            ("steps", steps),
            ("gradient", gradient),
            ("weight", weight),
            ("momentum", momentum),
            ("norms", norms.unwrap_or(&nothing)),
        ],
        grid: [width, height, replicas],
        work: Work::new(4 * weight.span(), 5 * weight.span()),
    })
}
