//! Several teachers as one: `v = 1/M sum u_m` (geometric), or `v = T log(1/M sum softmax(u_m / T))`
//! (arithmetic), a member per dispatch.

use crate::error::Result;
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::program::Work;
use crate::gpu::{Call, Kernel, Plan, Tensor};
use crate::kernels::head::Teacher;

params! {
    /// `struct Params` of `shaders/ensemble.wgsl`.
    struct Params {
        batch: u32, k: u32, u_stride: u32, v_stride: u32,
        u_replica: u32, v_replica: u32, order_replica: u32, replicas: u32,
        share: f32, log_share: f32,
    }
}

/// `shaders/ensemble.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "ensemble",
    source: shader!("ensemble"),
    params: Params::FIELDS,
    variants: || {
        let flags = [false, true];
        let mut all = Vec::new();
        for rule in Rule::ALL {
            for by_index in flags {
                for (first, last) in [(true, false), (false, false), (false, true)] {
                    all.push(constants(rule, by_index, first, last));
                }
            }
        }
        all
    },
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants(rule: Rule, by_index: bool, first: bool, last: bool) -> Constants {
    vec![
        ("GEOMETRIC", Constant::Bool(rule == Rule::Geometric)),
        ("BY_INDEX", Constant::Bool(by_index)),
        ("FIRST", Constant::Bool(first)),
        ("LAST", Constant::Bool(last)),
    ]
}

/// How several teachers' outputs become one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// The mean of their probabilities at the step's temperature.
    #[default]
    Arithmetic,
    /// The mean of their logits: the normalised geometric mean of their probabilities.
    Geometric,
}

impl Rule {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Arithmetic, Self::Geometric];
}

/// Records all members, at least two, into `v` `[r, batch, k]`. `order` is the epoch's, for cached ones.
///
/// # Errors
/// As [`Plan::dispatch`].
pub fn record(
    plan: &mut Plan<'_>,
    label: &str,
    rule: Rule,
    steps: &Tensor,
    order: &Tensor,
    members: &[Teacher],
    v: &Tensor,
) -> Result<()> {
    let [replicas, batch, k] = v.shape;
    assert!(members.len() > 1, "{label}: a single teacher needs no ensemble");
    for (m, member) in members.iter().enumerate() {
        let (u, by_index) = match member {
            Teacher::Live(u) => (u, false),
            Teacher::Cached(u) => (u, true),
            Teacher::None => panic!("{label}: a member without logits"),
        };
        assert_eq!(u.shape[2], k, "{label}: the members' classes differ");
        assert!(by_index || u.shape[1] == batch, "{label}: the members' batches differ");
        let share = 1.0 / members.len() as f64;
        plan.dispatch(Call {
            kernel: &KERNEL,
            constants: constants(rule, by_index, m == 0, m + 1 == members.len()),
            label: &format!("{label}.{m}"),
            params: Params {
                batch: batch as u32,
                k: k as u32,
                u_stride: u.row_stride as u32,
                v_stride: v.row_stride as u32,
                u_replica: u.stride_for(replicas),
                v_replica: v.replica_stride as u32,
                order_replica: order.stride_for(replicas),
                replicas: replicas as u32,
                share: share as f32,
                log_share: share.ln() as f32,
            },
            tensors: &[("steps", steps), ("order", order), ("u", u), ("v", v)],
            grid: [batch as u32, 1, replicas as u32],
            work: Work::new(0, (if m == 0 { 2 } else { 3 }) * replicas * batch * k),
        })?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "ensemble_tests.rs"]
mod tests;
