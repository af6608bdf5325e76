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

/// Invocations of a workgroup where there are few groups of parameters, and where there are [`MANY`]: some drivers set up
/// each workgroup anew (lavapipe), and all leave lanes of the last one idle, of many groups a sixteenth at most.
const WORKGROUPS: [u32; 2] = [64, 256];
const MANY: usize = 4_096;

/// Both settings of two switches, in workgroups of either size.
pub(super) fn variants(constants: impl Fn([bool; 2], u32) -> Constants) -> Vec<Constants> {
    FLAGS.into_iter().flat_map(|f| WORKGROUPS.map(|w| constants(f, w))).collect()
}

/// The one of [`WORKGROUPS`] for so many groups.
pub(crate) fn workgroup(groups: usize) -> u32 {
    WORKGROUPS[usize::from(groups >= MANY)]
}

/// `shaders/sgd.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "sgd",
    source: shader!("sgd"),
    params: Params::FIELDS,
    variants: || variants(constants),
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants([nesterov, scaled]: [bool; 2], workgroup: u32) -> Constants {
    vec![
        ("NESTEROV", Constant::Bool(nesterov)),
        ("SCALED", Constant::Bool(scaled)),
        ("WORKGROUP", Constant::U32(workgroup)),
    ]
}

/// Workgroups of this size that cover `groups`, folded into x and y below the 65,535 limit.
pub(crate) fn fold(groups: usize, workgroup: u32) -> [u32; 2] {
    let workgroups = groups.div_ceil(workgroup as usize) as u32;
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
    let workgroup = workgroup(groups);
    let [width, height] = fold(groups, workgroup);
    plan.dispatch(Call {
        kernel: &KERNEL,
        constants: constants([nesterov, norms.is_some()], workgroup),
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
