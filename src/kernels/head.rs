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

/// How a row is shared out: see the shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Invocations that share a row.
    pub lanes: u32,
    /// Elements that a lane has in hand at once.
    pub block: u32,
    /// Whether a row is one block, so that nothing is read twice.
    pub held: bool,
}

const fn form(lanes: u32, block: u32, held: bool) -> Form {
    Form { lanes, block, held }
}

/// Every form that the host can ask for.
pub const FORMS: [Form; 5] = [
    form(1, 32, true),
    form(1, 32, false),
    form(8, 32, true),
    form(64, 16, true),
    form(64, 32, false),
];

impl Form {
    /// The form for `k` classes. On a software driver every barrier costs more than it shares: there
    /// a row is one invocation's, and its stack holds a long one.
    pub fn of(gpu: &Gpu, k: usize) -> Self {
        let software = gpu.report.kind == "software";
        match k {
            0..=32 => FORMS[0],
            33..=1024 if software => FORMS[1],
            33..=256 => FORMS[2],
            257..=1024 => FORMS[3],
            _ => FORMS[4],
        }
    }

    /// Whether a row of `k` classes can be walked in this form.
    pub fn takes(&self, k: usize) -> bool {
        !self.held || k <= (self.block * self.lanes) as usize
    }

    /// `64x16 held`: lanes, block.
    pub fn text(&self) -> String {
        format!("{}x{}{}", self.lanes, self.block, if self.held { " held" } else { "" })
    }
}

/// `shaders/head.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "head",
    source: shader!("head"),
    params: Params::FIELDS,
    variants: || {
        let teachers = [(false, false), (true, false), (true, true)];
        FORMS
            .iter()
            .flat_map(|form| teachers.map(|(soft, by_index)| constants(form, soft, by_index)))
            .collect()
    },
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants(form: &Form, soft: bool, by_index: bool) -> Constants {
    vec![
        ("LANES", Constant::U32(form.lanes)),
        ("BLOCK", Constant::U32(form.block)),
        ("HELD", Constant::Bool(form.held)),
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

/// Records the loss head in a form that takes its classes.
///
/// # Errors
/// As [`Plan::dispatch`].
pub fn record(plan: &mut Plan<'_>, label: &str, head: &Head<'_>, form: Form) -> Result<()> {
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
    assert!(form.takes(k), "{label}: {k} classes in the form {}", form.text());
    let per_group = 64 / form.lanes as usize;
    plan.dispatch(Call {
        kernel: &KERNEL,
        constants: constants(&form, soft, by_index),
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
