//! The training loop: epochs, orders, submissions ahead of the device, rows of metrics behind it; and
//! what makes it safe: the run directory, checkpoints, limits.
//!
//! ```text
//! here        Run: steps
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
pub mod run_dir;
pub mod session;
pub mod shares;
pub mod state;
pub mod stop;

pub use along::along;
pub use log::{Row, Span};

pub mod schedule;

use std::time::{Duration, Instant};

use crate::data::Dataset;
use crate::distill::features::{Feature, Pull};
use crate::distill::regularize::Regularize;
use crate::distill::step::{Guard, Loss, Micro, Optimizer, Step, Teacher};
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
use schedule::Schedules;

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
    fn at(&self, t: u64, steps: u64) -> (f64, Loss) {
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
