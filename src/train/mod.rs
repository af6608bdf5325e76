//! The training loop: epochs, orders, submissions ahead of the device, rows of metrics behind it.

use std::time::{Duration, Instant};

use crate::data::Dataset;
use crate::distill::step::{Loss, Optimizer, Step, Tally, Teacher};
use crate::distill::{Feed, infer};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::plan::SLOTS;
use crate::gpu::readback::Flights;
use crate::mlp::Mlp;
use crate::mlp::weights::Weights;
use crate::rng;

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
    /// When to stop.
    pub length: Length,
    /// How the gradient changes the weights.
    pub optimizer: Optimizer,
    /// A new order each epoch, or file order.
    pub shuffle: bool,
    /// Steps per row of metrics.
    pub log_every: u64,
}

/// What one replica has of its own.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Of the order of its rows.
    pub seed: u64,
    /// Learning rate.
    pub lr: f64,
    /// Weights of its loss.
    pub loss: Loss,
    /// The student it starts from.
    pub student: Weights,
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

/// One row of metrics: the mean over the steps since the row before.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which replica.
    pub replica: usize,
    /// The last step in it, from 1.
    pub step: u64,
    /// Of how many.
    pub steps: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// hard_weight * hard + soft_weight * soft.
    pub loss: f64,
    /// Mean cross-entropy.
    pub hard_loss: f64,
    /// Mean T^2 KL.
    pub soft_loss: f64,
    /// Share of labelled rows that were right.
    pub accuracy: f64,
    /// Share of rows on which student and teacher agreed.
    pub agreement: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Training rows per second and replica since the run began.
    pub samples_per_second: f64,
}

struct Batch {
    start: usize,
    rows: usize,
}

/// Where in its epoch a step's batch starts, and how long it is.
fn batch_at(step: u64, rows: usize, batch: usize) -> Batch {
    let per_epoch = rows.div_ceil(batch) as u64;
    let start = (step % per_epoch) as usize * batch;
    Batch { start, rows: batch.min(rows - start) }
}

/// A run: students, data and teacher on the device, and the loop's state.
pub struct Run<'a> {
    gpu: &'a Gpu,
    recipe: Recipe,
    replicas: Vec<Replica>,
    feed: Feed<'a>,
    step: Step,
    /// The epoch's row numbers, one list per order.
    order: Vec<u32>,
    walked: Vec<Vec<u32>>,
    log: Log,
    pace: Pace,
    /// Optimiser steps in all.
    pub steps: u64,
    /// Optimiser steps done.
    pub done: u64,
    rows: usize,
}

impl<'a> Run<'a> {
    /// Puts everything on the device and records the step.
    ///
    /// # Errors
    /// [`Error::Usage`] where the parts do not fit each other; [`Error::Device`] for memory.
    pub fn new(
        gpu: &'a Gpu,
        data: &'a Dataset,
        rows: Rows,
        teacher: &Teacher,
        recipe: Recipe,
        replicas: Vec<Replica>,
    ) -> Result<Self> {
        let first = replicas.first().ok_or_else(|| Error::usage("replicas", "at least one", "none"))?;
        infer::check_inputs(&first.student.sizes(), data)?;
        let classes = first.student.sizes().last().copied().unwrap_or(0);
        let soft = first.loss.soft;
        for replica in &replicas {
            replica.loss.check_classes(classes)?;
            if !replica.loss.soft.same_kind(soft) {
                let found = format!("{} and {}", soft.text(), replica.loss.soft.text());
                return Err(Error::usage("losses of the replicas", "one kind for all", found));
            }
            if !(replica.lr > 0.0 && replica.lr.is_finite()) {
                return Err(Error::usage("learning rate", "a number above 0", replica.lr.to_string()));
            }
        }
        let mut walked = rows.walked;
        if walked.is_empty() {
            walked.push((0..data.rows() as u32).collect());
        }
        let length = walked[0].len();
        if length == 0 || recipe.batch == 0 {
            return Err(Error::usage("batch size and training rows", "at least 1 each", "0"));
        }
        let one_order = walked.len() == 1 && replicas.iter().all(|r| r.seed == first.seed);
        let orders = if one_order { 1 } else { replicas.len() };
        let labels = Some(rows.labels.as_slice()).filter(|l| !l.is_empty());
        let batch = recipe.batch.min(length);
        let feed = Feed::new(gpu, data, labels, [orders, length], batch, rows.device_memory)?;
        let students: Vec<_> = replicas.iter().map(|r| r.student.clone()).collect();
        let step = Step::record(gpu, &feed, teacher, soft, &students, recipe.optimizer, batch)?;
        let per_epoch = length.div_ceil(batch) as u64;
        let steps = match recipe.length {
            Length::Epochs(n) => n * per_epoch,
            Length::Steps(n) => n,
        };
        if steps == 0 {
            return Err(Error::usage("epochs or steps", "at least 1", "0"));
        }
        let recipe = Recipe { batch, ..recipe };
        let log = Log { sums: vec![Sums::default(); replicas.len()], began: Instant::now() };
        let pace = Pace::default();
        let order = Vec::new();
        Ok(Self { gpu, recipe, replicas, feed, step, order, walked, log, pace, steps, done: 0, rows: length })
    }

    /// Steps in one pass over the rows.
    pub fn steps_per_epoch(&self) -> u64 {
        self.rows.div_ceil(self.recipe.batch) as u64
    }

    /// The students on the device, as they are after the steps done.
    pub fn students(&self) -> &Mlp {
        &self.step.student
    }

    /// Trains until `to` steps are done (at most all), handing every row of metrics to `each`, and
    /// returns when the device is idle.
    ///
    /// # Errors
    /// [`Error::Run`] where a loss or a gradient is no longer finite; [`Error::Device`]; what `each`
    /// returns.
    pub fn advance(&mut self, to: u64, mut each: impl FnMut(&Row) -> Result<()>) -> Result<()> {
        let mut flights = Flights::<(u64, u32)>::default();
        let per_epoch = self.steps_per_epoch();
        let to = to.min(self.steps);
        while self.done < to {
            if self.done.is_multiple_of(per_epoch) {
                self.write_order(self.done / per_epoch)?;
            }
            let to_epoch_end = per_epoch - self.done % per_epoch;
            let window = (self.step.rows_at_once(&self.feed) / self.recipe.batch) as u64;
            let count = self.pace.steps.min(to_epoch_end).min(to - self.done).min(window);
            let position = |step| batch_at(step, self.rows, self.recipe.batch);
            let last = position(self.done + count - 1);
            let positions = position(self.done).start..last.start + last.rows;
            self.step.stage(self.gpu, &self.feed, &self.order, positions)?;
            let mut scalars = Vec::with_capacity(count as usize * self.replicas.len());
            for s in self.done..self.done + count {
                let b = batch_at(s, self.rows, self.recipe.batch);
                let step = &self.step;
                scalars.extend(
                    self.replicas.iter().map(|r| step.scalars(s + 1, b.start, b.rows, r.lr, &r.loss)),
                );
            }
            self.step.submit(self.gpu, &mut flights, &scalars, (self.done, count as u32))?;
            self.done += count;
            for ((first, count), raw) in flights.arrived(self.gpu, self.done == to)? {
                self.pace.arrived(u64::from(count));
                self.take(first, count, &raw, &mut each)?;
            }
        }
        Ok(())
    }

    /// Trains to the end and returns the students.
    ///
    /// # Errors
    /// As [`Run::advance`].
    pub fn train(&mut self, each: impl FnMut(&Row) -> Result<()>) -> Result<Vec<Weights>> {
        self.advance(self.steps, each)?;
        self.students().read_blocking(self.gpu)
    }

    fn write_order(&mut self, epoch: u64) -> Result<()> {
        let orders = self.feed.order.shape[0];
        self.order = (0..orders)
            .flat_map(|r| {
                let rows = &self.walked[r.min(self.walked.len() - 1)];
                match self.recipe.shuffle {
                    true => rng::permutation(self.replicas[r].seed, epoch, rows.len() as u32)
                        .into_iter()
                        .map(|i| rows[i as usize])
                        .collect(),
                    false => rows.clone(),
                }
            })
            .collect();
        self.feed.order.write(self.gpu, &self.order)
    }
}

/// Steps per submission: enough that the device is busy for about 50 ms, so that a submission's
/// own cost disappears and neither a watchdog nor the user's progress bar has to wait long.
/// It changes no bit of the result.
struct Pace {
    steps: u64,
    last: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self { steps: 1, last: Instant::now() }
    }
}

impl Pace {
    fn arrived(&mut self, count: u64) {
        let spent = self.last.elapsed();
        self.last = Instant::now();
        if spent < Duration::from_millis(25) && count == self.steps {
            self.steps = (self.steps * 2).min(u64::from(SLOTS));
        } else if spent > Duration::from_millis(100) {
            self.steps = (self.steps / 2).max(1);
        }
    }
}

/// The sums behind the next row of each replica.
struct Log {
    sums: Vec<Sums>,
    began: Instant,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    steps: f64,
    hard: f64,
    soft: f64,
    right: f64,
    labelled: f64,
    agreed: f64,
    rows: f64,
}

impl Run<'_> {
    /// Adds the tallies of a submission that arrived and hands out the rows that are complete.
    fn take(
        &mut self,
        first: u64,
        count: u32,
        raw: &[u32],
        each: &mut impl FnMut(&Row) -> Result<()>,
    ) -> Result<()> {
        for slot in 0..count {
            let step = first + u64::from(slot);
            let rows = batch_at(step, self.rows, self.recipe.batch).rows as u32;
            for replica in 0..self.replicas.len() {
                let tally = self.step.tally(raw, slot as usize, replica, rows);
                check_finite(step + 1, replica, &tally)?;
                self.log.sums[replica].add(&tally);
                if (step + 1).is_multiple_of(self.recipe.log_every) || step + 1 == self.steps {
                    each(&self.row(step + 1, replica))?;
                    self.log.sums[replica] = Sums::default();
                }
            }
        }
        Ok(())
    }

    fn row(&self, step: u64, replica: usize) -> Row {
        let s = &self.log.sums[replica];
        let own = &self.replicas[replica];
        let (hard_loss, soft_loss) = (s.hard / s.steps, s.soft / s.steps);
        let epoch = step as f64 / self.steps_per_epoch() as f64;
        Row {
            replica,
            step,
            steps: self.steps,
            epoch,
            loss: own.loss.hard_weight * hard_loss + own.loss.soft_weight * soft_loss,
            hard_loss,
            soft_loss,
            accuracy: s.right / s.labelled.max(1.0),
            agreement: s.agreed / s.rows,
            lr: own.lr,
            samples_per_second: epoch * self.rows as f64 / self.log.began.elapsed().as_secs_f64(),
        }
    }
}

impl Sums {
    fn add(&mut self, t: &Tally) {
        self.steps += 1.0;
        self.hard += f64::from(t.hard_loss);
        self.soft += f64::from(t.soft_loss);
        self.right += f64::from(t.accuracy) * f64::from(t.labelled);
        self.labelled += f64::from(t.labelled);
        self.agreed += f64::from(t.agreement) * f64::from(t.rows);
        self.rows += f64::from(t.rows);
    }
}

fn check_finite(step: u64, replica: usize, tally: &Tally) -> Result<()> {
    if tally.non_finite > 0.0 {
        return Err(Error::Run(format!(
            "step {step}, replica {replica}: {} of {} rows have a loss or gradient that is not a finite number; a lower learning rate may help",
            tally.non_finite, tally.rows
        )));
    }
    Ok(())
}
