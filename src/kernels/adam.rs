//! `w = w - lr c1 m / (c2 sqrt(v) + epsilon)` with running moments m and v: Adam, and AdamW.

use crate::error::Result;
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::program::Work;
use crate::gpu::{Call, Kernel, Plan, Tensor};
use crate::kernels::sgd::{fold, groups, variants, workgroup};

params! {
    /// `struct Params` of `shaders/adam.wgsl`.
    struct Params {
        groups: u32, replicas: u32, weight_decay: f32, width: u32, norms_replica: u32,
        beta_1: f32, beta_2: f32, rest_1: f32, rest_2: f32, epsilon: f32,
    }
}

/// `shaders/adam.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "adam",
    source: shader!("adam"),
    params: Params::FIELDS,
    variants: || variants(constants),
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants([decoupled, scaled]: [bool; 2], workgroup: u32) -> Constants {
    vec![
        ("DECOUPLED", Constant::Bool(decoupled)),
        ("SCALED", Constant::Bool(scaled)),
        ("WORKGROUP", Constant::U32(workgroup)),
    ]
}

/// Adam's fixed numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta_1: f64,
    /// Decay of the second moment.
    pub beta_2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Decay the weights directly (AdamW) instead of through the gradient.
    pub decoupled: bool,
}

/// Records one update of `weight` from `gradient`, whole arenas `[r, 1, len]` like the `moments`.
/// Learning rate and bias corrections are the step's. `norms` as for [`sgd`](super::sgd::record).
///
/// # Errors
/// As [`Plan::dispatch`]; [`Error::Usage`](crate::Error::Usage) where an arena is no multiple of 8 long.
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings, one each")]
pub fn record(
    plan: &mut Plan<'_>,
    label: &str,
    adam: &Adam,
    steps: &Tensor,
    gradient: &Tensor,
    weight: &Tensor,
    moments: [&Tensor; 2],
    norms: Option<&Tensor>,
) -> Result<()> {
    let nothing = plan.gpu.nothing()?;
    let groups = groups(weight)?;
    let replicas = weight.shape[0] as u32;
    let workgroup = workgroup(groups);
    let [width, height] = fold(groups, workgroup);
    plan.dispatch(Call {
        kernel: &KERNEL,
        constants: constants([adam.decoupled, norms.is_some()], workgroup),
        label,
        params: Params {
            groups: groups as u32,
            replicas,
            weight_decay: adam.weight_decay as f32,
            width,
            norms_replica: norms.map_or(0, |n| (n.replica_stride / 4) as u32),
            beta_1: adam.beta_1 as f32,
            beta_2: adam.beta_2 as f32,
            rest_1: (1.0 - adam.beta_1) as f32,
            rest_2: (1.0 - adam.beta_2) as f32,
            epsilon: adam.epsilon as f32,
        },
        tensors: &[
            ("steps", steps),
            ("gradient", gradient),
            ("weight", weight),
            ("moment_1", moments[0]),
            ("moment_2", moments[1]),
            ("norms", norms.unwrap_or(&nothing)),
        ],
        grid: [width, height, replicas],
        work: Work::new(12 * weight.span(), 7 * weight.span()),
    })
}
