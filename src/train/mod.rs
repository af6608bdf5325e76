//! The training loop: epochs, orders, submissions ahead of the device, rows of metrics behind it; and
//! what makes it safe: the run directory, checkpoints, limits.
//!
//! ```text
//! here        Run: steps
//! recipe      what a run is told
//! along       runs whose teachers learn too
//! shares      the students of a run on several devices at once
//! log         rows of metrics
//! left        how long the rest takes
//! state       what changes from step to step, on the host: taken from a run, given back to one
//! fault       the first tensor that is not finite, by name
//! checkpoint  a state on disk: written whole, verified when read, pruned
//! run_dir     the folder of a run: configuration, record, metrics, checkpoints
//! stop        when a run ends and which of its states is the best
//! session     a run in its folder: checkpoints, evaluations, limits, interruptions, resuming
//! ```

mod along;
pub mod checkpoint;
pub mod fault;
mod left;
mod log;
mod recipe;
pub mod run_dir;
pub mod schedule;
pub mod session;
pub mod shares;
pub mod state;
pub mod stop;

pub use along::along;
pub use log::{Row, Span};
pub use recipe::{Length, Recipe, Replica, Rows};

use std::time::{Duration, Instant};

use crate::data::Dataset;
use crate::distill::features::Pull;
use crate::distill::step::{Micro, Optimizer, Step, Teacher};
use crate::distill::{Feed, infer};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::program::SLOTS;
use crate::gpu::readback::Flights;
use crate::kernels::step;
use crate::mlp::Mlp;
use crate::mlp::weights::Weights;
use crate::rng;
use log::Log;

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
    /// Whose order that is.
    order_of: Option<u64>,
    walked: Vec<Vec<u32>>,
    log: Log,
    pace: Pace,
    /// Optimiser steps in all.
    pub steps: u64,
    /// Optimiser steps done.
    pub done: u64,
    rows: usize,
    /// The step whose numbers were found not to be finite.
    fault: Option<u64>,
    /// Where such a step does not end the run: which it was, for each replica.
    fallen: Option<Vec<Option<u64>>>,
    /// The number of its first replica: other than 0 where it is a share of a larger run.
    first: usize,
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
        recipe.check()?;
        let first = replicas.first().ok_or_else(|| Error::usage("replicas", "at least one", "none"))?;
        infer::check_inputs(&first.student.sizes(), data)?;
        let soft = first.loss.soft;
        for replica in &replicas {
            replica.check(recipe.optimizer)?;
            if !replica.loss.soft.same_kind(soft) {
                let found = format!("{} and {}", soft.text(), replica.loss.soft.text());
                return Err(Error::usage("losses of the replicas", "one kind for all", found));
            }
        }
        let mut walked = rows.walked;
        if walked.is_empty() {
            walked.push((0..data.rows() as u32).collect());
        }
        let length = walked[0].len();
        if length == 0 {
            return Err(Error::usage("training rows", "at least 1", "0"));
        }
        let one_order = walked.len() == 1 && replicas.iter().all(|r| r.seed == first.seed);
        let orders = if one_order { 1 } else { replicas.len() };
        let labels = Some(rows.labels.as_slice()).filter(|l| !l.is_empty());
        let batch = recipe.batch.min(length);
        let jitter = recipe.regularize.jitter(&data.shape)?;
        if jitter.is_some() && !teacher.is_live() {
            let expected = "teachers that run in every step and see the moved images";
            return Err(Error::usage("jitter", expected, "logits of the images as they are")
                .with_hint("give the teacher's weights instead of its logits"));
        }
        let feed = Feed::new(gpu, data, labels, [orders, length], batch, rows.device_memory)?;
        let feed = feed.jittered(jitter);
        let students: Vec<_> = replicas.iter().map(|r| r.student.clone()).collect();
        let Recipe { optimizer, guard, regularize, .. } = recipe;
        let pull = Pull { soft, features: &recipe.features };
        // Fewer rows than a batch: the last micro-batches are short or empty.
        let micro = match recipe.accumulate {
            1 => Micro { rows: batch, count: 1 },
            count => Micro { rows: (recipe.batch / count).min(length), count },
        };
        let step = Step::record(gpu, &feed, teacher, pull, &students, optimizer, guard, regularize, micro)?;
        let steps = recipe.steps(length);
        if steps == 0 {
            return Err(Error::usage("epochs or steps", "at least 1", "0"));
        }
        let recipe = Recipe { batch, ..recipe };
        let log = Log::new(replicas.len());
        let pace = Pace::default();
        Ok(Self {
            gpu,
            recipe,
            replicas,
            feed,
            step,
            order: Vec::new(),
            order_of: None,
            walked,
            log,
            pace,
            steps,
            done: 0,
            rows: length,
            fault: None,
            fallen: None,
            first: 0,
        })
    }

    /// From now on a replica whose numbers are no longer finite falls out and has no more rows; the others,
    /// none of which reads what it writes, go on to the bits that they have without it.
    pub fn let_fall(&mut self) {
        self.fallen.get_or_insert_with(|| vec![None; self.replicas.len()]);
    }

    /// The step at which each replica fell out; empty without [`Run::let_fall`].
    pub fn fallen(&self) -> &[Option<u64>] {
        self.fallen.as_deref().unwrap_or_default()
    }

    fn has_fallen(&self, replica: usize) -> bool {
        self.fallen().get(replica).is_some_and(Option::is_some)
    }

    /// Steps in one pass over the rows.
    pub fn steps_per_epoch(&self) -> u64 {
        self.rows.div_ceil(self.recipe.batch) as u64
    }

    /// The students on the device, as they are after the steps done.
    pub fn students(&self) -> &Mlp {
        &self.step.student
    }

    /// Trains until `to` steps are done (at most all), handing every interval's row of metrics to
    /// `each`, at the end of the run that of the last interval too, and returns when the device is idle.
    ///
    /// # Errors
    /// [`Error::Run`] where a loss or a gradient is no longer finite; [`Error::Device`]; what `each`
    /// returns.
    pub fn advance(&mut self, to: u64, mut each: impl FnMut(&Row) -> Result<()>) -> Result<()> {
        let mut intervals = |row: &Row| if row.span == Span::Interval { each(row) } else { Ok(()) };
        self.advance_until(to, || false, &mut intervals)?;
        if self.done == self.steps { self.rest(&mut intervals) } else { Ok(()) }
    }

    /// The same, but with the rows of epochs, without that of an interval or epoch that is not full
    /// (see [`Run::rest`]), and at most until `stop`, which is asked after each submission, says so.
    /// However a run is cut into calls, the steps and the rows are the same.
    ///
    /// # Errors
    /// As [`Run::advance`].
    pub fn advance_until(
        &mut self,
        to: u64,
        stop: impl Fn() -> bool,
        mut each: impl FnMut(&Row) -> Result<()>,
    ) -> Result<()> {
        let mut flights = Flights::<(u64, u32)>::default();
        let per_epoch = self.steps_per_epoch();
        let mut to = to.min(self.steps);
        while self.done < to {
            self.write_order(self.done / per_epoch)?;
            let to_epoch_end = per_epoch - self.done % per_epoch;
            let window = (self.step.rows_at_once(&self.feed) / self.recipe.batch) as u64;
            let most = window.min(self.step.at_once());
            let count = self.pace.steps.min(to_epoch_end).min(to - self.done).min(most);
            let position = |step| batch_at(step, self.rows, self.recipe.batch);
            let last = position(self.done + count - 1);
            let positions = position(self.done).start..last.start + last.rows;
            self.step.stage(self.gpu, &self.feed, &self.order, positions)?;
            let mut scalars = Vec::with_capacity(count as usize * self.replicas.len());
            for s in self.done..self.done + count {
                scalars.extend(self.scalars(s));
            }
            self.step.submit(self.gpu, &mut flights, &scalars, (self.done, count as u32))?;
            self.done += count;
            let left = (0..self.replicas.len()).any(|r| !self.has_fallen(r));
            if stop() || !left {
                to = self.done;
            }
            for ((first, count), raw) in flights.arrived(self.gpu, self.done == to)? {
                let now = Instant::now();
                self.pace.arrived(now, u64::from(count));
                self.log.left.arrived(now, first + u64::from(count));
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

    /// The scalars of the step after `s` steps, one per replica.
    fn scalars(&self, s: u64) -> Vec<step::Step> {
        let (t, batch) = (s + 1, batch_at(s, self.rows, self.recipe.batch));
        let of = |replica: &Replica| {
            let (lr, loss) = replica.at(t, self.steps);
            let mut scalars = self.step.scalars(t, batch.start, batch.rows, lr, &loss);
            scalars.seed = rng::key32(replica.seed);
            if let Optimizer::Sgd { momentum, .. } = self.recipe.optimizer {
                scalars.momentum = replica.schedules.momentum.at(momentum, t, self.steps) as f32;
            }
            scalars
        };
        self.replicas.iter().map(of).collect()
    }

    fn write_order(&mut self, epoch: u64) -> Result<()> {
        if self.order_of == Some(epoch) {
            return Ok(());
        }
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
        self.order_of = Some(epoch);
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
    fn arrived(&mut self, now: Instant, count: u64) {
        let spent = now - self.last;
        self.last = now;
        if spent < Duration::from_millis(25) && count == self.steps {
            self.steps = (self.steps * 2).min(u64::from(SLOTS));
        } else if spent > Duration::from_millis(100) {
            self.steps = (self.steps / 2).max(1);
        }
    }
}

#[cfg(test)]
#[path = "no_room_tests.rs"]
mod no_room;
