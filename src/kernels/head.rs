//! Hard and soft loss, `d_z` and the row's metrics in one pass over the logits:
//! `d_z = (hard_weight (softmax(z) - y) + soft_weight T (softmax(z/T) - softmax(v/T))) / rows`.

use crate::error::Result;
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::plan::Work;
use crate::gpu::{Call, Gpu, Kernel, Plan, Tensor};
use crate::kernels::metrics::WIDTH;

/// A label that stands for none: the row has a soft term only.
pub const UNLABELLED: u32 = u32::MAX;

params! {
    /// `struct Params` of `shaders/head.wgsl`.
    struct Params {
        batch: u32, k: u32, z_stride: u32, v_stride: u32,
        z_replica: u32, v_replica: u32, stats_replica: u32,
        order_replica: u32, labels_replica: u32, replicas: u32, group_start: u32,
    }
}

/// Invocations that share a row.
pub const LANES: [u32; 5] = [1, 4, 8, 16, 64];

/// `shaders/head.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "head",
    source: shader!("head"),
    params: Params::FIELDS,
    variants: || {
        let forms = [(false, false), (true, false), (true, true)];
        LANES
            .iter()
            .flat_map(|l| forms.map(|(soft, by_index)| constants(*l, soft, by_index)))
            .collect()
    },
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants(lanes: u32, soft: bool, by_index: bool) -> Constants {
    vec![
        ("LANES", Constant::U32(lanes)),
        ("SOFT", Constant::Bool(soft)),
        ("BY_INDEX", Constant::Bool(by_index)),
    ]
}

/// Where the teacher's logits come from.
#[derive(Clone, Debug)]
pub enum Teacher {
    /// None: the hard loss alone.
    None,
    /// `[r or 1, batch, k]`, made by the teacher's forward pass in this step.
    Live(Tensor),
    /// `[1, n, k]`, made once for the whole set and found by row number.
    Cached(Tensor),
}

/// What the head reads and writes.
pub struct Head<'a> {
    /// The ring of [`crate::kernels::step::Step`].
    pub steps: &'a Tensor,
    /// Row numbers of the epoch `[r or 1, 1, n]`.
    pub order: &'a Tensor,
    /// Labels by row number `[r or 1, 1, n]`.
    pub labels: &'a Tensor,
    /// Student logits `[r, batch, k]`.
    pub z: &'a Tensor,
    /// Teacher logits.
    pub teacher: &'a Teacher,
    /// Gradient of the batch's loss with respect to `z`, `[r, batch, k]`.
    pub d_z: &'a Tensor,
    /// Per-row numbers of every step of the submission, `[r, slots * batch, 8]`.
    pub stats: &'a Tensor,
}

/// The number of lanes for `k` classes: as many as keep busy, few where rows are short. On a
/// software driver every barrier costs more than it shares: there a row is one invocation's.
pub fn lanes_for(gpu: &Gpu, k: usize) -> u32 {
    match (gpu.report.kind, k) {
        ("software", _) | (_, 0..=32) => 1,
        (_, 33..=256) => 8,
        _ => 64,
    }
}

/// Records the loss head with `lanes` invocations to a row (one of [`LANES`]).
///
/// # Errors
/// As [`Plan::dispatch`].
pub fn record(plan: &mut Plan<'_>, label: &str, head: &Head<'_>, lanes: u32) -> Result<()> {
    let [replicas, batch, k] = head.z.shape;
    assert_eq!(head.d_z.shape, head.z.shape, "{label}: d_z and z differ");
    assert_eq!(head.d_z.replica_stride, head.z.replica_stride);
    assert_eq!(head.stats.shape[2], WIDTH);
    let (v, soft, by_index) = match head.teacher {
        Teacher::None => (head.z, false, false),
        Teacher::Live(v) => (v, true, false),
        Teacher::Cached(v) => (v, true, true),
    };
    assert_eq!(v.shape[2], k, "{label}: teacher and student classes differ");
    let per_group = 64 / lanes as usize;
    plan.dispatch(Call {
        kernel: &KERNEL,
        constants: constants(lanes, soft, by_index),
        label,
        params: Params {
            batch: batch as u32,
            k: k as u32,
            z_stride: head.z.row_stride as u32,
            v_stride: v.row_stride as u32,
            z_replica: head.z.replica_stride as u32,
            v_replica: v.stride_for(replicas),
            stats_replica: head.stats.replica_stride as u32,
            order_replica: head.order.stride_for(replicas),
            labels_replica: head.labels.stride_for(replicas),
            replicas: replicas as u32,
            group_start: 0,
        },
        tensors: &[
            ("steps", head.steps),
            ("order", head.order),
            ("labels", head.labels),
            ("z", head.z),
            ("v", v),
            ("d_z", head.d_z),
            ("stats", head.stats),
        ],
        grid: [batch.div_ceil(per_group) as u32, 1, replicas as u32],
        work: Work::new(0, (if soft { 3 } else { 2 }) * replicas * batch * k),
    })
}
