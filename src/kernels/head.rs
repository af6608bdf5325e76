//! Hard and soft loss, `d_z` and the row's metrics in one pass over the logits:
//! `d_z = (hard_weight (softmax(z) - y) + soft_weight d_soft) / rows`; the soft loss is any [`SoftLoss`].

use crate::error::{Error, Result};
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::program::Work;
use crate::gpu::{Call, Gpu, Kernel, Plan, Tensor};
use crate::kernels::metrics::WIDTH;
use crate::reference::SoftLoss;

/// A label that stands for none: the row has a soft term only.
pub const UNLABELLED: u32 = u32::MAX;

params! {
    /// `struct Params` of `shaders/head.wgsl`.
    struct Params {
        batch: u32, k: u32, z_stride: u32, v_stride: u32,
        z_replica: u32, v_replica: u32, stats_replica: u32,
        order_replica: u32, labels_replica: u32, replicas: u32, by_index: u32, group_start: u32,
    }
}

/// How a row is shared out: see the shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Invocations that share a row.
    pub lanes: u32,
    /// Classes that a lane has in hand at once.
    pub block: u32,
    /// Whether a row is one block, so that nothing is read twice.
    pub held: bool,
}

const fn form(lanes: u32, block: u32, held: bool) -> Form {
    Form { lanes, block, held }
}

/// The forms of every loss: alone, or with the whole workgroup.
const ALONE: Form = form(1, 16, false);
const TOGETHER: Form = form(64, 16, false);
/// Those that only the hard loss and plain forward KL have besides, which is what nearly every run uses.
const SHORT: Form = form(1, 4, false);
const FAST: [Form; 3] = [SHORT, form(8, 32, true), form(64, 16, true)];

impl Form {
    /// Every form of a term (`None`: the hard loss alone) that the host can ask for.
    pub fn all(soft: Option<Soft>) -> Vec<Self> {
        let fast: &[Self] = if soft.is_none_or(|s| s == Soft::FORWARD_KL) { &FAST } else { &[] };
        [&[ALONE, TOGETHER], fast].concat()
    }

    /// The most classes that one invocation is given alone: its walks together stay within the 65,535
    /// rounds that lavapipe grants it.
    pub const MOST_ALONE: usize = 1 << 16;

    /// The form for `k` classes. On a software driver every barrier costs more than it shares: there
    /// a row is one invocation's.
    pub fn of(gpu: &Gpu, k: usize, soft: Option<Soft>) -> Self {
        let alone = gpu.report.kind == "software" && k <= Self::MOST_ALONE;
        let form = match k {
            0..=32 => SHORT,
            _ if alone => ALONE,
            33..=256 => FAST[1],
            257..=1024 => FAST[2],
            _ => TOGETHER,
        };
        match Self::all(soft).contains(&form) {
            true => form,
            false if form.lanes == 1 => ALONE,
            false => TOGETHER,
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

/// The soft term: which loss, and of which logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Soft {
    /// What pulls the student towards its teacher.
    pub loss: SoftLoss,
    /// Standardise both rows of logits first (LSKD).
    pub standardise: bool,
}

impl Soft {
    /// The loss of Hinton et al.
    pub const FORWARD_KL: Self = Self { loss: SoftLoss::ForwardKl, standardise: false };

    /// One of each kind of term, with parameters that show: every loss, and every loss that compares
    /// softmaxes with standardised logits too, but for the clip, which is Keras's alone.
    pub fn kinds() -> Vec<Self> {
        let losses = [
            SoftLoss::ForwardKl,
            SoftLoss::ReverseKl,
            SoftLoss::Symmetric,
            SoftLoss::Jsd { beta: 0.3 },
            SoftLoss::Dkd { alpha: 1.0, beta: 8.0 },
            SoftLoss::ClippedKl { clip: 1e-7 },
            SoftLoss::VirtualTeacher { confidence: 0.9 },
            SoftLoss::Sigmoid,
            SoftLoss::Mse,
        ];
        let plain = losses.map(|loss| Self { loss, standardise: false });
        let clipped = |loss: &SoftLoss| matches!(loss, SoftLoss::ClippedKl { .. });
        let standardised = losses.into_iter().filter(|l| l.is_softmax_based() && !clipped(l));
        plain.into_iter().chain(standardised.map(|loss| Self { loss, standardise: true })).collect()
    }

    /// The shader's number of the loss.
    pub fn code(self) -> u32 {
        match self.loss {
            SoftLoss::ForwardKl => 0,
            SoftLoss::ReverseKl => 1,
            SoftLoss::Symmetric => 2,
            SoftLoss::Jsd { .. } => 3,
            SoftLoss::Dkd { .. } => 4,
            SoftLoss::ClippedKl { .. } => 5,
            SoftLoss::VirtualTeacher { .. } => 6,
            SoftLoss::Sigmoid => 7,
            SoftLoss::Mse => 8,
        }
    }

    /// Whether both are the same term but for its parameters, which a step brings along.
    pub fn same_kind(self, other: Self) -> bool {
        (self.code(), self.standardise) == (other.code(), other.standardise)
    }

    /// `loss_a` to `loss_d` of a step over `k` classes, as the shader's list of losses says.
    pub fn scalars(self, k: usize) -> [f32; 4] {
        let all: [f64; 4] = match self.loss {
            SoftLoss::Jsd { beta } => [beta, 1.0 - beta, beta.ln(), (1.0 - beta).ln()],
            SoftLoss::Dkd { alpha, beta } => [alpha, beta, 0.0, 0.0],
            SoftLoss::ClippedKl { clip } => [clip, clip.ln(), 0.0, 0.0],
            SoftLoss::VirtualTeacher { confidence } => {
                let other = (1.0 - confidence) / (k.max(2) - 1) as f64;
                [confidence.ln(), other.ln(), 0.0, 0.0]
            }
            _ => [0.0; 4],
        };
        all.map(|x| x as f32)
    }

    /// # Errors
    /// [`Error::Usage`] where `k` classes are too few for the term.
    pub fn check_classes(self, k: usize) -> Result<()> {
        let least = match self.loss {
            SoftLoss::Dkd { .. } => 3,
            _ => 2,
        };
        if k >= least {
            return Ok(());
        }
        let error = Error::usage(self.text(), format!("at least {least} classes"), k.to_string());
        Err(match self.loss {
            SoftLoss::Dkd { .. } => error.with_hint("with two classes it has no non-target part: take forward KL"),
            _ => error,
        })
    }

    /// `jsd`, `standardised dkd`.
    pub fn text(self) -> String {
        let loss = self.loss.name();
        if self.standardise { format!("standardised {loss}") } else { loss.to_owned() }
    }
}

/// `shaders/head.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "head",
    source: shader!("head"),
    params: Params::FIELDS,
    variants: || {
        let terms = std::iter::once(None).chain(Soft::kinds().into_iter().map(Some));
        terms.flat_map(|soft| Form::all(soft).into_iter().map(move |form| constants(&form, soft))).collect()
    },
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants(form: &Form, soft: Option<Soft>) -> Constants {
    vec![
        ("LANES", Constant::U32(form.lanes)),
        ("BLOCK", Constant::U32(form.block)),
        ("HELD", Constant::Bool(form.held)),
        ("SOFT", Constant::Bool(soft.is_some())),
        ("LOSS", Constant::U32(soft.map_or(0, Soft::code))),
        ("STANDARDISE", Constant::Bool(soft.is_some_and(|s| s.standardise))),
    ]
}

/// Where the teacher's logits come from.
#[derive(Clone, Debug)]
pub enum Teacher {
    /// None: the hard loss alone, or a virtual teacher.
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
    /// The soft term, where there is a teacher or none is needed.
    pub soft: Soft,
    /// Gradient of the batch's loss with respect to `z`, `[r, batch, k]`.
    pub d_z: &'a Tensor,
    /// Per-row numbers of every step of the submission, `[r, slots * batch, 8]`.
    pub stats: &'a Tensor,
}

impl Head<'_> {
    /// The soft term, if it has what it compares the student with.
    pub fn term(&self) -> Option<Soft> {
        let taught = !matches!(self.teacher, Teacher::None) || !self.soft.loss.needs_teacher();
        taught.then_some(self.soft)
    }
}

/// Records the loss head in a form of its term that takes its classes.
///
/// # Errors
/// [`Error::Usage`] where the loss needs more classes; as [`Plan::dispatch`].
pub fn record(plan: &mut Plan<'_>, label: &str, head: &Head<'_>, form: Form) -> Result<()> {
    let [replicas, batch, k] = head.z.shape;
    assert_eq!(head.d_z.shape, head.z.shape, "{label}: d_z and z differ");
    assert_eq!(head.d_z.replica_stride, head.z.replica_stride);
    assert_eq!(head.stats.shape[2], WIDTH);
    let (v, by_index) = match head.teacher {
        Teacher::None => (head.z, false),
        Teacher::Live(v) => (v, false),
        Teacher::Cached(v) => (v, true),
    };
    let soft = head.term();
    if let Some(soft) = soft {
        soft.check_classes(k)?;
    }
    assert_eq!(v.shape[2], k, "{label}: teacher and student classes differ");
    assert!(Form::all(soft).contains(&form), "{label}: {soft:?} in the form {}", form.text());
    assert!(form.takes(k), "{label}: {k} classes in the form {}", form.text());
    let per_group = 64 / form.lanes as usize;
    plan.dispatch(Call {
        kernel: &KERNEL,
        constants: constants(&form, soft),
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
            by_index: by_index.into(),
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
        work: Work::new(0, (if soft.is_some() { 3 } else { 2 }) * replicas * batch * k),
    })
}
