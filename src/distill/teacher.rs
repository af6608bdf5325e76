//! Whom the student learns from: networks that run in every step, logits made before, or several of both.

use crate::data::Normalisation;
use crate::distill::feed::Feed;
use crate::error::{Error, Result};
use crate::gpu::{Plan, Tensor};
use crate::kernels::ensemble::{self, Rule};
use crate::kernels::head;
use crate::mlp::Mlp;

/// Whom the student learns from.
pub enum Teacher {
    /// The labels alone.
    None,
    /// A network that runs in every step on the student's own inputs.
    Live(Mlp),
    /// Logits made once for every row of the data set, `[1, n, k]`.
    Cached(Tensor),
    /// One or several teachers, each with inputs of its own.
    Ensemble(Vec<Member>, Rule),
}

/// One of several teachers.
pub enum Member {
    /// A network and, where it has one, its own way from stored values to inputs.
    Live(Mlp, Option<Normalisation>),
    /// Logits as in [`Teacher::Cached`].
    Cached(Tensor),
}

impl Teacher {
    /// Records what the teacher does in a step: its forward passes, and the mean of several.
    ///
    /// # Errors
    /// [`Error::Usage`] where normalisation or classes do not fit; as [`Plan::dispatch`].
    pub fn record(
        &self,
        plan: &mut Plan<'_>,
        feed: &Feed<'_>,
        ring: &Tensor,
        x: &Tensor,
        replicas: usize,
    ) -> Result<head::Teacher> {
        let (members, rule) = match self {
            Self::None => return Ok(head::Teacher::None),
            Self::Live(mlp) => {
                return Ok(head::Teacher::Live(mlp.record_forward(plan, x)?.logits().clone()));
            }
            Self::Cached(logits) => return Ok(head::Teacher::Cached(logits.clone())),
            Self::Ensemble(members, rule) => (members, *rule),
        };
        let batch = x.shape[1];
        let mut sources = members
            .iter()
            .map(|member| match member {
                Member::Cached(logits) => Ok(head::Teacher::Cached(logits.clone())),
                Member::Live(mlp, own) => {
                    let x = match feed.suits(own.as_ref()) {
                        true => x.clone(),
                        false => feed.record(plan, ring, batch, own.as_ref())?,
                    };
                    Ok(head::Teacher::Live(mlp.record_forward(plan, &x)?.logits().clone()))
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let classes = |source: &head::Teacher| match source {
            head::Teacher::None => 0,
            head::Teacher::Live(v) | head::Teacher::Cached(v) => v.shape[2],
        };
        let Some(k) = sources.first().map(classes) else {
            return Err(Error::usage("teachers", "at least one", "none"));
        };
        if let Some(other) = sources.iter().map(classes).find(|n| *n != k) {
            return Err(Error::usage("teachers", format!("{k} classes in each"), format!("{other} classes")));
        }
        if sources.len() == 1 {
            return Ok(sources.swap_remove(0));
        }
        let v = Tensor::zeros(plan.gpu, "teacher.v", [replicas, batch, k])?;
        ensemble::record(plan, "teacher.ensemble", rule, ring, &feed.order, &sources, &v)?;
        Ok(head::Teacher::Live(v))
    }
}
