//! Rows of metrics: the tallies of steps, added up as they arrive.

use std::time::{Duration, Instant};

use crate::distill::Loss;
use crate::distill::step::Tally;
use crate::error::{Error, Result};
use crate::train::left::{Extent, Left};
use crate::train::{Run, batch_at};

/// Skipped steps in a row after which a run has no hope, unless an interval is longer.
const HOPELESS: u64 = 100;

/// What a row of metrics is the mean of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The steps since the last multiple of `log_every`.
    Interval,
    /// The steps of an epoch.
    Epoch,
}

/// One row of metrics: the mean over some steps.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which steps.
    pub span: Span,
    /// Which replica.
    pub replica: usize,
    /// The last step in it, from 1.
    pub step: u64,
    /// Of how many.
    pub steps: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// hard_weight * hard + soft_weight * soft + the losses on hidden layers.
    pub loss: f64,
    /// Mean cross-entropy.
    pub hard_loss: f64,
    /// Mean soft loss.
    pub soft_loss: f64,
    /// Mean of the losses on hidden layers, each times its weight.
    pub feature_loss: f64,
    /// Share of labelled rows that were right.
    pub accuracy: f64,
    /// Share of rows on which student and teacher agreed.
    pub agreement: f64,
    /// Norm of the soft part of the logits' gradient over that of the hard part, both weighted; none
    /// without a hard part.
    pub gradient_ratio: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// T of the last step.
    pub temperature: f64,
    /// How long the rest takes at the pace so far, evaluations too; `None` at the first steps.
    pub left: Option<Duration>,
    /// Steps that were left out of the means and changed nothing: see [`Guard`](crate::distill::Guard).
    pub skipped: u64,
    /// Training rows per second and replica since this process began or resumed the run.
    pub samples_per_second: f64,
}

/// The sums behind the next rows of each replica, and since when and which step time is taken.
pub(super) struct Log {
    pub(super) interval: Vec<Sums>,
    pub(super) epoch: Vec<Sums>,
    pub(super) began: (Instant, u64),
    pub(super) left: Left,
}

impl Log {
    pub(super) fn new(replicas: usize) -> Self {
        let sums = vec![Sums::default(); replicas];
        Self { interval: sums.clone(), epoch: sums, began: (Instant::now(), 0), left: Left::default() }
    }

    pub(super) fn of(&self, span: Span) -> &[Sums] {
        match span {
            Span::Interval => &self.interval,
            Span::Epoch => &self.epoch,
        }
    }

    fn of_mut(&mut self, span: Span) -> &mut [Sums] {
        match span {
            Span::Interval => &mut self.interval,
            Span::Epoch => &mut self.epoch,
        }
    }
}

/// What a row is made of, for one replica.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Sums {
    pub(super) steps: f64,
    pub(super) loss: f64,
    pub(super) hard: f64,
    pub(super) soft: f64,
    pub(super) features: f64,
    pub(super) right: f64,
    pub(super) labelled: f64,
    pub(super) agreed: f64,
    pub(super) rows: f64,
    pub(super) hard_norm: f64,
    pub(super) soft_norm: f64,
    pub(super) skipped: f64,
}

impl Run<'_> {
    /// The rows of the interval and of the epoch that are not full, where there are such. They stay
    /// under way: a longer run counts on.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn rest(&self, mut each: impl FnMut(&Row) -> Result<()>) -> Result<()> {
        for replica in 0..self.replicas.len() {
            for span in [Span::Interval, Span::Epoch] {
                if self.log.of(span)[replica].steps > 0.0 {
                    each(&self.row(self.done, replica, span))?;
                }
            }
        }
        Ok(())
    }

    /// Adds the tallies of a submission that arrived and hands out the rows that are complete.
    pub(super) fn take(
        &mut self,
        first: u64,
        count: u32,
        raw: &[u32],
        each: &mut impl FnMut(&Row) -> Result<()>,
    ) -> Result<()> {
        let per_epoch = self.steps_per_epoch();
        for slot in 0..count {
            let step = first + u64::from(slot);
            let rows = batch_at(step, self.rows, self.recipe.batch).rows as u32;
            for replica in 0..self.replicas.len() {
                if self.has_fallen(replica) {
                    continue;
                }
                let tally = self.step.tally(raw, slot as usize, replica, rows);
                let finite = tally.non_finite <= 0.0 && !tally.held;
                // What was not held has moved the weights: a loss can overflow where its gradient does not.
                if !(finite || self.recipe.guard.skip && tally.held) {
                    self.fall(step + 1, replica, &tally)?;
                    continue;
                }
                let (_, loss) = self.replicas[replica].at(step + 1, self.steps);
                for (span, length) in [(Span::Interval, self.recipe.log_every), (Span::Epoch, per_epoch)] {
                    let sums = &mut self.log.of_mut(span)[replica];
                    match finite {
                        true => sums.add(&tally, &loss),
                        false => sums.skipped += 1.0,
                    }
                    // Steps that are skipped from a row's first on are counted in the next row that has others.
                    let empty = sums.steps < 1.0;
                    if empty && span == Span::Interval && sums.skipped >= length.max(HOPELESS) as f64 {
                        self.fall(step + 1, replica, &tally)?;
                        break;
                    }
                    if !empty && (step + 1).is_multiple_of(length) {
                        each(&self.row(step + 1, replica, span))?;
                        self.log.of_mut(span)[replica] = Sums::default();
                    }
                }
            }
        }
        Ok(())
    }

    /// `step` has ended the run, or only what there is of `replica`.
    fn fall(&mut self, step: u64, replica: usize, tally: &Tally) -> Result<()> {
        let Some(fallen) = &mut self.fallen else {
            self.fault = Some(step);
            return Err(not_finite(step, self.first + replica, tally));
        };
        fallen[replica] = Some(step);
        for span in [Span::Interval, Span::Epoch] {
            self.log.of_mut(span)[replica] = Sums::default();
        }
        Ok(())
    }

    pub(super) fn extent(&self) -> Extent {
        Extent { per_epoch: self.steps_per_epoch(), steps: self.steps }
    }

    pub(super) fn row(&self, step: u64, replica: usize, span: Span) -> Row {
        let s = &self.log.of(span)[replica];
        let (lr, loss) = self.replicas[replica].at(step, self.steps);
        let epoch = step as f64 / self.steps_per_epoch() as f64;
        let (since, from) = self.log.began;
        let trained = (self.done - from) as f64 / self.steps_per_epoch() as f64 * self.rows as f64;
        Row {
            span,
            replica: self.first + replica,
            step,
            steps: self.steps,
            epoch,
            loss: s.loss / s.steps,
            hard_loss: s.hard / s.steps,
            soft_loss: s.soft / s.steps,
            feature_loss: s.features / s.steps,
            accuracy: s.right / s.labelled.max(1.0),
            agreement: s.agreed / s.rows,
            gradient_ratio: (s.hard_norm > 0.0).then(|| (s.soft_norm / s.hard_norm).sqrt()),
            lr,
            temperature: loss.temperature,
            skipped: s.skipped as u64,
            left: self.log.left.rest(self.extent()),
            samples_per_second: trained / since.elapsed().as_secs_f64(),
        }
    }
}

impl Sums {
    fn add(&mut self, t: &Tally, loss: &Loss) {
        self.steps += 1.0;
        self.loss += loss.hard_weight * f64::from(t.hard_loss)
            + loss.soft_weight * f64::from(t.soft_loss)
            + f64::from(t.feature_loss);
        self.features += f64::from(t.feature_loss);
        self.hard_norm += f64::from(t.gradient_norms[0]);
        self.soft_norm += f64::from(t.gradient_norms[1]);
        self.hard += f64::from(t.hard_loss);
        self.soft += f64::from(t.soft_loss);
        self.right += f64::from(t.accuracy) * f64::from(t.labelled);
        self.labelled += f64::from(t.labelled);
        self.agreed += f64::from(t.agreement) * f64::from(t.rows);
        self.rows += f64::from(t.rows);
    }
}

fn not_finite(step: u64, replica: usize, tally: &Tally) -> Error {
    let what = match tally.non_finite > 0.0 {
        true => format!("{} of {} rows have a loss or gradient", tally.non_finite, tally.rows),
        false => "the weights have a gradient".to_owned(),
    };
    Error::Run(format!("step {step}, replica {replica}: {what} that is not a finite number"))
}
