//! `norm = sqrt(sum g^2)` of each replica's gradient and `scale = min(1, clip / norm)`, 0 where the
//! gradient is not finite.

use crate::error::Result;
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::program::Work;
use crate::gpu::{Call, Kernel, Plan, Tensor};

/// Numbers per step: norm, scale, 1 where the gradient is not finite, 0.
pub const WIDTH: usize = 4;
/// The most workgroups that share a replica's gradient.
const MOST: usize = 256;

params! {
    /// `struct Params` of `shaders/norm.wgsl`.
    struct Params { groups: u32, partials: u32, norms_replica: u32, clip: f32 }
}

/// `shaders/norm.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "norm",
    source: shader!("norm"),
    params: Params::FIELDS,
    variants: || [false, true].map(constants).to_vec(),
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants(finish: bool) -> Constants {
    vec![("FINISH", Constant::Bool(finish))]
}

/// Sums per replica that lie between the two dispatches, for a gradient of `len` parameters.
pub(crate) fn partials(len: usize) -> usize {
    len.div_ceil(4 * 64).clamp(1, MOST)
}

/// Records norm and scale of `gradient` `[r, 1, len]` into the step's row of `norms` `[r, slots, 4]`.
/// Without `clip` the scale of a finite gradient is 1.
///
/// # Errors
/// As [`Plan::dispatch`].
pub fn record(
    plan: &mut Plan<'_>,
    label: &str,
    clip: Option<f32>,
    gradient: &Tensor,
    norms: &Tensor,
) -> Result<()> {
    let replicas = gradient.shape[0];
    let partials = partials(gradient.shape[2]);
    let partial = Tensor::zeros(plan.gpu, &format!("{label}.partial"), [1, 1, replicas * partials])?;
    record_with(plan, label, clip, gradient, &partial, norms)
}

/// The same with the sums between the dispatches in the given tensor.
pub(crate) fn record_with(
    plan: &mut Plan<'_>,
    label: &str,
    clip: Option<f32>,
    gradient: &Tensor,
    partial: &Tensor,
    norms: &Tensor,
) -> Result<()> {
    let [replicas, _, len] = gradient.shape;
    let partials = partials(len);
    assert_eq!((norms.shape[0], norms.shape[2]), (replicas, WIDTH));
    for (finish, width) in [(false, partials), (true, 1)] {
        plan.dispatch(Call {
            kernel: &KERNEL,
            constants: constants(finish),
            label: &format!("{label}{}", if finish { "" } else { ".squares" }),
            params: Params {
                groups: (gradient.row_stride / 4) as u32,
                partials: partials as u32,
                norms_replica: (norms.replica_stride / 4) as u32,
                clip: clip.unwrap_or(f32::MAX),
            },
            tensors: &[("gradient", gradient), ("partial", partial), ("norms", norms)],
            grid: [width as u32, 1, replicas as u32],
            work: if finish { Work::new(partials, partials) } else { Work::new(2 * gradient.span(), gradient.span()) },
        })?;
    }
    Ok(())
}
