//! `y = x / (1 - rate)` where an element is kept, 0 where it is dropped; which is a pure function of seed,
//! step and layer.

use crate::error::Result;
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::program::Work;
use crate::gpu::{Call, Kernel, Plan, Tensor};
use crate::kernels::sgd::fold;
use crate::kernels::step::Step;

params! {
    /// `struct Params` of `shaders/dropout.wgsl`.
    struct Params {
        groups: u32, width: u32, x_replica: u32, y_replica: u32, replicas: u32,
        layer: u32, threshold: u32, scale: f32,
    }
}

/// `shaders/dropout.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "dropout",
    source: shader!("dropout"),
    params: Params::FIELDS,
    variants: || [false, true].map(constants).to_vec(),
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants(add: bool) -> Constants {
    vec![("ADD", Constant::Bool(add))]
}

/// Which elements are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drop {
    /// The share of them, at least 0 and below 1.
    pub rate: f64,
    /// The layer whose input they are: no two share a mask.
    pub layer: usize,
}

impl Drop {
    /// An element is dropped where its random word is below this.
    pub fn threshold(&self) -> u32 {
        (self.rate * 2_f64.powi(32)) as u32
    }

    /// What a kept element is multiplied by.
    pub fn scale(&self) -> f64 {
        1.0 / (1.0 - self.rate)
    }
}

/// Records the dropping of `x` `[r or 1, batch, width]` into `y` `[r, batch, width]`, with `add` on top of
/// what y holds. `steps` is the ring of the r replicas.
///
/// # Errors
/// As [`Plan::dispatch`].
pub fn record(
    plan: &mut Plan<'_>,
    label: &str,
    drop: Drop,
    add: bool,
    steps: &Tensor,
    x: &Tensor,
    y: &Tensor,
) -> Result<()> {
    let [replicas, batch, _] = y.shape;
    assert_eq!((&x.shape[1..], x.row_stride), (&y.shape[1..], y.row_stride), "{label}: x and y differ");
    assert_eq!(replicas, steps.shape[2] * 4 / size_of::<Step>(), "{label}: replicas");
    let groups = batch * y.row_stride / 4;
    let [width, height] = fold(groups, 64);
    plan.dispatch(Call {
        kernel: &KERNEL,
        constants: constants(add),
        label,
        params: Params {
            groups: groups as u32,
            width,
            x_replica: x.stride_for(replicas) / 4,
            y_replica: (y.replica_stride / 4) as u32,
            replicas: replicas as u32,
            layer: drop.layer as u32,
            threshold: drop.threshold(),
            scale: drop.scale() as f32,
        },
        tensors: &[("steps", steps), ("x", x), ("y", y)],
        grid: [width, height, replicas as u32],
        work: Work::new(y.span(), x.span() + if add { 2 } else { 1 } * y.span()),
    })
}
