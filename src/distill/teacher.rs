//! Whom the student learns from: networks that run in every step, logits made before, or several of both.

use std::ops::Range;
use std::sync::Arc;

use crate::data::{Dataset, Elements, Normalisation};
use crate::distill::feed::Feed;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Plan, Tensor};
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
    /// Logits of every row, kept on the host and brought to the device with the rows they belong to;
    /// resident where they take no more than so many bytes of it.
    Rows(Arc<Dataset>, Option<u64>),
}

impl Member {
    /// Logits `[rows, classes]` by row number: on the device if a shader can see them there at once and
    /// they take at most `memory` bytes.
    ///
    /// # Errors
    /// [`Error::Data`] where there is no row; [`Error::Device`].
    pub fn cached(gpu: &Gpu, classes: usize, logits: Vec<f32>, memory: Option<u64>) -> Result<Self> {
        let rows = logits.len() / classes.max(1);
        let bytes = rows as u64 * classes.next_multiple_of(4) as u64 * 4;
        if bytes <= memory.unwrap_or(u64::MAX).min(gpu.max_binding()) {
            match Tensor::upload(gpu, "teacher.logits", [1, rows, classes], &logits) {
                // Too much for the device: they are streamed.
                Err(Error::Device { .. }) if memory.is_none() && gpu.check().is_ok() => {}
                other => return Ok(Self::Cached(other?)),
            }
        }
        let set = Dataset::new("teacher logits", Elements::F32(logits), vec![classes], None, None)?;
        Ok(Self::Rows(Arc::new(set), memory))
    }
}

/// What a teacher's part of the step leaves.
pub struct Taught {
    /// For the loss head.
    pub logits: head::Teacher,
    /// The outputs of the hidden layers `[r or 1, batch, width]`, where one network teaches.
    pub hidden: Option<Vec<Tensor>>,
}

impl Taught {
    fn by(logits: head::Teacher) -> Self {
        Self { logits, hidden: None }
    }

    fn by_network(plan: &mut Plan<'_>, mlp: &Mlp, x: &Tensor) -> Result<Self> {
        let mut outputs = mlp.record_forward(plan, x)?.outputs;
        let logits = outputs.pop().map_or(head::Teacher::None, head::Teacher::Live);
        Ok(Self { logits, hidden: Some(outputs) })
    }
}

impl Teacher {
    /// Whether it answers for the rows as they are in a batch, and has no answers from before.
    pub fn is_live(&self) -> bool {
        match self {
            Self::None | Self::Live(_) => true,
            Self::Cached(_) => false,
            Self::Ensemble(members, _) => members.iter().all(|m| matches!(m, Member::Live(..))),
        }
    }

    /// The same teacher on another device, for the replicas `of` of a run.
    ///
    /// # Errors
    /// As [`Mlp::copied`].
    pub fn copied(&self, from: &Gpu, to: &Gpu, of: Range<usize>) -> Result<Self> {
        let member = |member: &Member| {
            Ok(match member {
                Member::Live(mlp, own) => Member::Live(mlp.copied(from, to, of.clone())?, own.clone()),
                Member::Cached(logits) => Member::Cached(logits.copied(from, to)?),
                Member::Rows(logits, memory) => Member::Rows(logits.clone(), *memory),
            })
        };
        Ok(match self {
            Self::None => Self::None,
            Self::Live(mlp) => Self::Live(mlp.copied(from, to, of)?),
            Self::Cached(logits) => Self::Cached(logits.copied(from, to)?),
            Self::Ensemble(members, rule) => {
                Self::Ensemble(members.iter().map(member).collect::<Result<_>>()?, *rule)
            }
        })
    }

    /// SHA-256 of each network that runs in every step, as it is on the device.
    ///
    /// # Errors
    /// As [`Mlp::read_blocking`].
    pub fn hashes_blocking(&self, gpu: &Gpu) -> Result<Vec<String>> {
        let live: Vec<&Mlp> = match self {
            Self::None | Self::Cached(_) => vec![],
            Self::Live(mlp) => vec![mlp],
            Self::Ensemble(members, _) => members
                .iter()
                .filter_map(|member| match member {
                    Member::Live(mlp, _) => Some(mlp),
                    _ => None,
                })
                .collect(),
        };
        let read = live.into_iter().map(|mlp| mlp.read_blocking(gpu)).collect::<Result<Vec<_>>>()?;
        Ok(read.into_iter().flatten().map(|network| network.sha256()).collect())
    }

    /// Records what the teacher does with a batch: its forward passes, and the mean of several. What has to
    /// be staged with the rows, `step_rows` of them for a step, is added to `beside`.
    ///
    /// # Errors
    /// [`Error::Usage`] where normalisation or classes do not fit; as [`Plan::dispatch`].
    #[allow(clippy::too_many_arguments, reason = "what a teacher sees, one each")]
    pub fn record(
        &self,
        plan: &mut Plan<'_>,
        feed: &Feed<'_>,
        ring: &Tensor,
        x: &Tensor,
        replicas: usize,
        step_rows: usize,
        beside: &mut Vec<Feed<'static>>,
    ) -> Result<Taught> {
        let (members, rule) = match self {
            Self::None => return Ok(Taught::by(head::Teacher::None)),
            Self::Live(mlp) => return Taught::by_network(plan, mlp, x),
            Self::Cached(logits) => return Ok(Taught::by(head::Teacher::Cached(logits.clone()))),
            Self::Ensemble(members, rule) => (members, *rule),
        };
        let batch = x.shape[1];
        let mut sources = members
            .iter()
            .map(|member| match member {
                Member::Cached(logits) => Ok(Taught::by(head::Teacher::Cached(logits.clone()))),
                Member::Rows(logits, memory) => {
                    let own = feed.beside(plan.gpu, logits.clone(), step_rows, *memory)?;
                    let v = own.record(plan, ring, batch, None)?;
                    beside.push(own);
                    Ok(Taught::by(head::Teacher::Live(v)))
                }
                Member::Live(mlp, own) => {
                    let x = match feed.suits(own.as_ref()) {
                        true => x.clone(),
                        false => feed.record(plan, ring, batch, own.as_ref())?,
                    };
                    Taught::by_network(plan, mlp, &x)
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let classes = |source: &Taught| match &source.logits {
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
        let logits: Vec<_> = sources.into_iter().map(|s| s.logits).collect();
        ensemble::record(plan, "teacher.ensemble", rule, ring, &feed.order, &logits, &v)?;
        Ok(Taught::by(head::Teacher::Live(v)))
    }
}
