//! What a run is told: how long, in which batches, by which optimiser; and what each replica has of its own.

use crate::distill::features::Feature;
use crate::distill::regularize::Regularize;
use crate::distill::step::{Guard, Loss, Micro, Optimizer};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::program::SLOTS;
use crate::mlp::weights::Weights;
use crate::train::schedule::Schedules;

/// How long a run lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Passes over the training rows.
    Epochs(u64),
    /// Optimiser steps.
    Steps(u64),
}

/// What all replicas of a run have in common.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Rows per step; the last batch of an epoch may be shorter.
    pub batch: usize,
    /// Micro-batches of `batch / accumulate` rows that make a step: what fits little memory takes turns.
    pub accumulate: usize,
    /// When to stop.
    pub length: Length,
    /// How the gradient changes the weights.
    pub optimizer: Optimizer,
    /// A new order each epoch, or file order.
    pub shuffle: bool,
    /// Steps per row of metrics.
    pub log_every: u64,
    /// Against gradients that are too long or not finite.
    pub guard: Guard,
    /// Losses on hidden layers.
    pub features: Vec<Feature>,
    /// Against learning the rows by heart.
    pub regularize: Regularize,
}

impl Recipe {
    /// # Errors
    /// [`Error::Usage`] where the batch does not part into micro-batches; as [`Micro::check`].
    pub fn check(&self) -> Result<()> {
        let Self { batch, accumulate, .. } = *self;
        if batch == 0 {
            return Err(Error::usage("batch size", "at least 1", "0"));
        }
        if (1..=SLOTS as usize).contains(&accumulate) && batch.is_multiple_of(accumulate) {
            return Micro { rows: batch / accumulate, count: accumulate }.check(&self.features);
        }
        let expected = format!("from 1 to {SLOTS}, in which the batch of {batch} parts");
        Err(Error::usage("gradient accumulation", expected, accumulate.to_string()))
    }

    /// Optimiser steps of a run over `rows` rows.
    pub fn steps(&self, rows: usize) -> u64 {
        match self.length {
            Length::Epochs(n) => n * rows.div_ceil(self.batch.max(1)) as u64,
            Length::Steps(n) => n,
        }
    }

    /// In as many more micro-batches as it takes for `columns` of as many of `rows` as a micro-batch has to
    /// fit what the device lets a shader see at once. As it is where they fit, where no number of them does, and
    /// with losses on hidden layers, which do not part.
    pub fn fitted(&self, gpu: &Gpu, rows: usize, columns: usize) -> Self {
        let fits = |count: &usize| {
            self.batch.is_multiple_of(*count) && (self.batch / count).min(rows) <= gpu.rows_of(columns)
        };
        let most = if self.features.is_empty() { SLOTS as usize } else { self.accumulate };
        let accumulate = (self.accumulate..=most).find(fits).unwrap_or(self.accumulate);
        Self { accumulate, ..self.clone() }
    }
}

/// What one replica has of its own.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Of the order of its rows and of what is drawn in its steps.
    pub seed: u64,
    /// Learning rate.
    pub lr: f64,
    /// Its loss, as it is at the start.
    pub loss: Loss,
    /// How learning rate, momentum, temperature and weights change.
    pub schedules: Schedules,
    /// The student it starts from.
    pub student: Weights,
}

impl Replica {
    /// Learning rate and loss of step `t`, from 1, of a run of `steps`.
    pub(super) fn at(&self, t: u64, steps: u64) -> (f64, Loss) {
        let (s, loss) = (&self.schedules, self.loss);
        let loss = Loss {
            temperature: s.temperature.at(loss.temperature, t, steps),
            hard_weight: s.hard_weight.at(loss.hard_weight, t, steps),
            soft_weight: s.soft_weight.at(loss.soft_weight, t, steps),
            ..loss
        };
        (s.lr.at(self.lr, t, steps), loss)
    }

    /// # Errors
    /// [`Error::Usage`] for a learning rate, a loss or a schedule that makes no sense.
    pub fn check(&self, optimizer: Optimizer) -> Result<()> {
        self.loss.check_classes(self.student.sizes().last().copied().unwrap_or(0))?;
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return Err(Error::usage("learning rate", "a number above 0", self.lr.to_string()));
        }
        let (s, loss) = (&self.schedules, self.loss);
        s.lr.check("learning rate", self.lr, false)?;
        s.temperature.check("temperature", loss.temperature, true)?;
        if s.temperature.warmup > 0 {
            return Err(Error::usage("temperature schedule", "no warm-up, which begins at 0", "a warm-up"));
        }
        s.hard_weight.check("hard weight", loss.hard_weight, false)?;
        s.soft_weight.check("soft weight", loss.soft_weight, false)?;
        match optimizer {
            Optimizer::Sgd { momentum, .. } => s.momentum.check("momentum", momentum, false),
            _ if s.momentum.is_constant() => Ok(()),
            _ => Err(Error::usage("momentum schedule", "the optimiser sgd", "adam")),
        }
    }
}

/// Which rows of the data set are walked, and which labels are seen.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Row numbers, one list for all replicas or one each, all of one length; empty: every row.
    pub walked: Vec<Vec<u32>>,
    /// Labels by row number, one list for all or one each; empty: the data set's own.
    pub labels: Vec<Vec<u32>>,
    /// Bytes of the device that the data may take; more are streamed. `None`: what there is.
    pub device_memory: Option<u64>,
}
