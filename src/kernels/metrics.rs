//! `metrics[r, s] = sum over the batch of stats[r, s * batch + i]`: one row of eight sums per step
//! of a submission.

use crate::error::Result;
use crate::gpu::program::{SLOTS, Work};
use crate::gpu::{Call, Kernel, Plan, Tensor};

/// Numbers per sample and per step: hard loss, soft loss, correct, agreement; non-finite flag,
/// labelled, squared norms of the hard and of the soft gradient.
pub const WIDTH: usize = 8;

params! {
    /// `struct Params` of `shaders/metrics.wgsl`.
    struct Params { batch: u32, stats_replica: u32, metrics_replica: u32 }
}

/// `shaders/metrics.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "metrics",
    source: shader!("metrics"),
    params: Params::FIELDS,
    variants: || vec![vec![]],
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

/// Records the reduction of `stats` `[r, slots * batch, 8]` into `metrics` `[r, slots, 8]`.
///
/// # Errors
/// As [`Plan::dispatch`].
pub fn record(plan: &mut Plan<'_>, label: &str, stats: &Tensor, metrics: &Tensor) -> Result<()> {
    let [replicas, rows, _] = stats.shape;
    assert_eq!(metrics.shape, [replicas, SLOTS as usize, WIDTH]);
    plan.dispatch(Call {
        kernel: &KERNEL,
        constants: vec![],
        label,
        params: Params {
            batch: rows as u32 / SLOTS,
            stats_replica: stats.replica_stride as u32,
            metrics_replica: metrics.replica_stride as u32,
        },
        tensors: &[("stats", stats), ("metrics", metrics)],
        grid: [SLOTS, 1, replicas as u32],
        work: Work::new(stats.span(), stats.span() + metrics.span()),
    })
}
