//! Losses on a hidden layer: `d = weight * dL/da` of a hint, `L = mean (a - b)^2`, or of similarity
//! preserving, `L = |G(a) - G(b)|^2 / B^2`.

use crate::error::Result;
use crate::gpu::program::Work;
use crate::gpu::{Call, Kernel, Plan, Tensor};
use crate::kernels::metrics::WIDTH;

params! {
    /// `struct Params` of `shaders/feature_hint.wgsl` and `shaders/feature_similarity.wgsl`.
    struct Params {
        batch: u32, width: u32, a_stride: u32, b_stride: u32, d_stride: u32,
        a_replica: u32, b_replica: u32, d_replica: u32, stats_replica: u32, replicas: u32,
        weight: f32,
    }
}

/// `shaders/feature_hint.wgsl`.
pub static HINT: Kernel = Kernel {
    name: "feature_hint",
    source: shader!("feature_hint"),
    params: Params::FIELDS,
    variants: || vec![vec![]],
};
/// `shaders/feature_similarity.wgsl`.
pub static SIMILARITY: Kernel = Kernel {
    name: "feature_similarity",
    source: shader!("feature_similarity"),
    params: Params::FIELDS,
    variants: || vec![vec![]],
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&HINT, &SIMILARITY];

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// FitNets (Romero et al. 2015): `a` is a regression of the student's layer, `b` the teacher's layer.
    Hint,
    /// Similarity preserving (Tung and Mori 2019): both are Gram matrices.
    Similarity,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Hint, Self::Similarity];

    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hint => "hint",
            Self::Similarity => "similarity",
        }
    }
}

/// What the loss reads and writes.
pub struct Feature<'a> {
    /// The ring of [`crate::kernels::step::Step`].
    pub steps: &'a Tensor,
    /// The student's side `[r, batch, width]`.
    pub a: &'a Tensor,
    /// The teacher's `[r or 1, batch, width]`.
    pub b: &'a Tensor,
    /// Gradient of the weighted loss with respect to `a`, laid out by its own strides.
    pub d: &'a Tensor,
    /// Per-row numbers of every step of the submission, `[r, slots * batch, 8]`: the row's loss comes
    /// first, a flag for what is not finite fifth.
    pub stats: &'a Tensor,
    /// Of the loss in the whole.
    pub weight: f64,
}

/// Records the loss.
///
/// # Errors
/// As [`Plan::dispatch`].
pub fn record(plan: &mut Plan<'_>, label: &str, kind: Kind, feature: &Feature<'_>) -> Result<()> {
    let Feature { steps, a, b, d, stats, weight } = *feature;
    let [replicas, batch, width] = a.shape;
    assert_eq!(d.shape, a.shape, "{label}: d and a differ");
    assert_eq!(b.shape[1..], a.shape[1..], "{label}: student and teacher differ");
    assert!(kind == Kind::Hint || batch == width, "{label}: a Gram matrix is square");
    assert_eq!(stats.shape[2], WIDTH, "{label}: stats");
    plan.dispatch(Call {
        kernel: match kind {
            Kind::Hint => &HINT,
            Kind::Similarity => &SIMILARITY,
        },
        constants: vec![],
        label,
        params: Params {
            batch: batch as u32,
            width: width as u32,
            a_stride: a.row_stride as u32,
            b_stride: b.row_stride as u32,
            d_stride: d.row_stride as u32,
            a_replica: a.stride_for(replicas),
            b_replica: b.stride_for(replicas),
            d_replica: d.replica_stride as u32,
            stats_replica: stats.replica_stride as u32,
            replicas: replicas as u32,
            weight: weight as f32,
        },
        tensors: &[("steps", steps), ("a", a), ("b", b), ("d", d), ("stats", stats)],
        grid: [batch as u32, 1, replicas as u32],
        work: Work::new(0, 3 * replicas * batch * width),
    })
}
