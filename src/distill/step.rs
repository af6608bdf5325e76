//! One training step as a program: gather, teacher forward, student forward, loss head, backward,
//! optimiser; recorded once, run many times.

use std::ops::Range;

use crate::distill::features::{Features, Pull};
use crate::distill::feed::Feed;
pub use crate::distill::loss::Loss;
pub use crate::distill::micro::Micro;
use crate::distill::regularize::Regularize;
pub use crate::distill::teacher::Teacher;
use crate::error::Result;
use crate::gpu::program::{Part, SLOTS, Traced};
use crate::gpu::readback::Flights;
use crate::gpu::{Gpu, Plan, Program, Tensor};
use crate::kernels::head::{self, Head};
use crate::kernels::{adam, metrics, norm, sgd, step};
use crate::mlp::Mlp;
use crate::mlp::weights::Weights;

/// How the gradient changes the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent, PyTorch's convention.
    Sgd {
        /// Decay of the velocity.
        momentum: f64,
        /// Look ahead along the velocity.
        nesterov: bool,
        /// Coupled L2.
        weight_decay: f64,
    },
    /// Adam or AdamW. Biases are decayed too, as PyTorch and Keras do.
    Adam(adam::Adam),
    /// The same as Keras writes it: epsilon is added before the second moment is corrected for its start
    /// at 0, so that early on it weighs more, by 1 / sqrt(1 - beta_2^t).
    KerasAdam(adam::Adam),
}

impl Optimizer {
    /// Momentum and the two bias corrections of step `t`, counted from 1.
    fn scalars(&self, t: u64) -> [f32; 3] {
        let corrections = |a: &adam::Adam| {
            let t = t as f64;
            (1.0 - a.beta_1.powf(t), (1.0 - a.beta_2.powf(t)).sqrt())
        };
        match self {
            Self::Sgd { momentum, .. } => [*momentum as f32, 1.0, 1.0],
            Self::Adam(a) => {
                let (first, second) = corrections(a);
                [0.0, (1.0 / first) as f32, (1.0 / second) as f32]
            }
            Self::KerasAdam(a) => {
                let (first, second) = corrections(a);
                [0.0, (second / first) as f32, 1.0]
            }
        }
    }

    /// Number of arenas of running moments.
    pub(super) fn moments(&self) -> usize {
        match self {
            Self::Sgd { .. } => 1,
            Self::Adam(_) | Self::KerasAdam(_) => 2,
        }
    }
}

/// What stands between a bad gradient and the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Guard {
    /// The largest norm of a replica's gradient; a longer one is shortened to it.
    pub clip: Option<f64>,
    /// A step whose gradient is not finite changes nothing, and the run goes on.
    pub skip: bool,
}

impl Guard {
    /// Whether the norm is needed.
    fn watches(&self) -> bool {
        self.clip.is_some() || self.skip
    }
}

/// The numbers of one step of one replica, already divided by the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Rows in the batch.
    pub rows: u32,
    /// Rows with a label.
    pub labelled: f32,
    /// Mean cross-entropy over the batch; rows without a label count as 0.
    pub hard_loss: f32,
    /// Mean soft loss over the batch.
    pub soft_loss: f32,
    /// Share of the labelled rows that are right.
    pub accuracy: f32,
    /// Share of the rows on which student and teacher agree.
    pub agreement: f32,
    /// Mean of the losses on hidden layers, each times its weight.
    pub feature_loss: f32,
    /// Rows with a loss or gradient that is not a finite number.
    pub non_finite: f32,
    /// Sums of squares of the hard and of the soft part of the logits' gradient.
    pub gradient_norms: [f32; 2],
    /// With a [`Guard`]: whether the gradient of the weights was not finite, so that they stayed.
    pub held: bool,
}

/// The step of `r` students side by side.
///
/// A step may be made as several micro-batches, each in a slot of its own: their gradients are added up
/// before the one update.
pub struct Step {
    /// A micro-batch; where it is the whole batch, the update too.
    program: Program,
    /// After the last micro-batch of several.
    update: Option<Program>,
    micro: Micro,
    tally: Program,
    ring: Tensor,
    /// What a submission leaves of each step: sums over the batch, and with a guard the norms.
    report: Tensor,
    norms: Option<Tensor>,
    /// Of each feature loss, and their weights.
    feature_sums: Vec<Tensor>,
    feature_weights: Vec<f32>,
    features: Features,
    /// The sums' terms, a row of each slot for every row of the batch.
    stats: Tensor,
    /// The students' parameters.
    pub student: Mlp,
    /// Their gradient after the last step.
    pub gradient: Mlp,
    /// The optimiser's running moments.
    pub moments: Vec<Tensor>,
    optimizer: Optimizer,
    /// What is staged with the rows: logits that do not stay on the device.
    beside: Vec<Feed<'static>>,
}

impl Step {
    /// Records the step for the given students, whose losses are of one kind.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] where layers, classes and data do not fit, or where losses on hidden layers
    /// meet several micro-batches; [`crate::Error::Device`] for memory and limits.
    #[allow(clippy::too_many_arguments, reason = "what a step is made of, one each")]
    pub fn record(
        gpu: &Gpu,
        feed: &Feed<'_>,
        teacher: &Teacher,
        pull: Pull<'_>,
        students: &[Weights],
        optimizer: Optimizer,
        guard: Guard,
        regularize: Regularize,
        micro: Micro,
    ) -> Result<Self> {
        regularize.check()?;
        let (batch, several) = (micro.rows, micro.count > 1);
        micro.check(pull.features)?;
        let student = Mlp::upload(gpu, "student", students)?;
        let gradient = Mlp::zeros(gpu, "d_student", students.len(), &student.sizes, student.activation)?;
        let ring = step::ring(gpu, students.len())?;
        let mut plan = Plan::new(gpu);
        let x = feed.record(&mut plan, &ring, batch, None)?;
        let mut beside = Vec::new();
        let taught =
            teacher.record(&mut plan, feed, &ring, &x, students.len(), batch * micro.count, &mut beside)?;
        let forward = student.record_forward_with(&mut plan, &x, regularize.dropout(&ring))?;
        let z = forward.logits();
        let d_z = Tensor::zeros(gpu, "d_logits", z.shape)?;
        let [replicas, _, k] = z.shape;
        let stats = Tensor::zeros(gpu, "stats", [replicas, SLOTS as usize * batch, metrics::WIDTH])?;
        let io = Head {
            steps: &ring,
            order: &feed.order,
            labels: &feed.labels,
            z,
            teacher: &taught.logits,
            soft: pull.soft,
            d_z: &d_z,
            stats: &stats,
        };
        head::record(&mut plan, "head", &io, head::Form::of(gpu, k, io.term()))?;
        let hidden = taught.hidden.as_deref();
        let features = Features::record(&mut plan, pull.features, &forward, hidden, &ring, optimizer)?;
        student.record_backward(&mut plan, &x, &forward, &d_z, &features.d_hidden, &gradient, several)?;
        let moments = (0..optimizer.moments())
            .map(|i| Tensor::zeros(gpu, &format!("moment_{}", i + 1), student.whole.shape))
            .collect::<Result<Vec<_>>>()?;
        let slots = SLOTS as usize;
        let mut parts = vec![("metrics".to_owned(), slots, metrics::WIDTH)];
        if guard.watches() {
            parts.push(("norms".to_owned(), slots, norm::WIDTH));
        }
        let sums = |i| (format!("features{i}"), slots, metrics::WIDTH);
        parts.extend((0..pull.features.len()).map(sums));
        let (report, views) = Tensor::arena(gpu, "report", replicas, &parts)?;
        let norms = guard.watches().then(|| views[1].clone());
        let mut after = Plan::new(gpu);
        let end = if several { &mut after } else { &mut plan };
        if let Some(norms) = &norms {
            norm::record(end, "norm", guard.clip.map(|c| c as f32), &gradient.whole, norms)?;
        }
        let [gradients, weights] = [&gradient.whole, &student.whole];
        record_update(end, optimizer, &ring, gradients, weights, &moments, norms.as_ref())?;
        regularize.record_update(end, &student, norms.as_ref())?;
        features.record_update(end, optimizer, &ring, norms.as_ref())?;

        let mut tally = Plan::new(gpu);
        metrics::record(&mut tally, "metrics", &stats, &views[0])?;
        let feature_sums = views[views.len() - pull.features.len()..].to_vec();
        for (stats, sums) in features.stats.iter().zip(&feature_sums) {
            metrics::record(&mut tally, &sums.label, stats, sums)?;
        }
        let feature_weights = pull.features.iter().map(|f| f.weight as f32).collect();
        Ok(Self {
            program: plan.finish()?,
            update: several.then(|| after.finish()).transpose()?,
            micro,
            tally: tally.finish()?,
            ring,
            report,
            norms,
            feature_sums,
            feature_weights,
            features,
            stats,
            student,
            gradient,
            moments,
            optimizer,
            beside,
        })
    }

    /// Puts rows that do not stay on the device there before the next submission: the feed's, and what
    /// belongs to them. As [`Feed::stage`].
    ///
    /// # Errors
    /// As [`Feed::stage`].
    pub fn stage(&self, gpu: &Gpu, feed: &Feed<'_>, order: &[u32], positions: Range<usize>) -> Result<()> {
        feed.stage(gpu, order, positions.clone())?;
        self.beside.iter().try_for_each(|f| f.stage(gpu, order, positions.clone()))
    }

    /// The most rows of an epoch that one submission may walk. As [`Feed::rows_at_once`].
    pub fn rows_at_once(&self, feed: &Feed<'_>) -> usize {
        self.beside.iter().map(Feed::rows_at_once).fold(feed.rows_at_once(), usize::min)
    }

    /// The most steps that one submission may hold.
    pub fn at_once(&self) -> u64 {
        u64::from(SLOTS) / self.micro.count as u64
    }

    /// The step's dispatches, for profiles; of several micro-batches those of one.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The scalars of step `t` (from 1) over `rows` rows from `row_start` of the epoch's order.
    pub fn scalars(&self, t: u64, row_start: usize, rows: usize, lr: f64, loss: &Loss) -> step::Step {
        let [momentum, correction_1, correction_2] = self.optimizer.scalars(t);
        let classes = self.student.sizes.last().copied().unwrap_or(0);
        let [loss_a, loss_b, loss_c, loss_d] = loss.soft.scalars(classes);
        step::Step {
            step: t as u32,
            row_start: row_start as u32,
            rows: rows as u32,
            lr: lr as f32,
            momentum,
            correction_1,
            correction_2,
            temperature: loss.temperature as f32,
            hard_weight: loss.hard_weight as f32,
            soft_weight: loss.soft_weight as f32,
            smoothing: loss.smoothing as f32,
            loss_a,
            loss_b,
            loss_c,
            loss_d,
            ..step::Step::default()
        }
    }

    /// What a step changes and the next one needs, by name: what a checkpoint holds.
    pub fn arenas(&self) -> Vec<(&str, &Tensor)> {
        let student = [("student", &self.student.whole)];
        let moments = self.moments.iter().map(|m| (m.label.as_str(), m));
        student.into_iter().chain(moments).chain(self.features.arenas()).collect()
    }

    /// Submits the steps given as `scalars[step * replicas + replica]` in one submission, followed
    /// by a copy of their metrics, which arrive later as `what`.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device is lost.
    pub fn submit<T>(
        &self,
        gpu: &Gpu,
        flights: &mut Flights<T>,
        scalars: &[step::Step],
        what: T,
    ) -> Result<()> {
        let slots = self.in_slots(scalars);
        step::write(gpu, &self.ring, &slots)?;
        let slots = (slots.len() / self.replicas()) as u32;
        let mut parts = match &self.update {
            None => vec![Part::run(&self.program, 0..slots)],
            Some(update) => (0..slots)
                .step_by(self.micro.count)
                .flat_map(|first| {
                    let end = first + self.micro.count as u32;
                    [
                        Part::clear(&self.gradient.whole),
                        Part::run(&self.program, first..end),
                        Part::run(update, end - 1..end),
                    ]
                })
                .collect(),
        };
        parts.push(Part::fold(&self.tally, slots));
        flights.submit(gpu, &parts, Some((what, &self.report)))
    }

    fn replicas(&self) -> usize {
        self.student.whole.shape[0]
    }

    /// Scalars by step and replica as scalars by slot and replica.
    fn in_slots(&self, scalars: &[step::Step]) -> Vec<step::Step> {
        let mut slots = Vec::with_capacity(scalars.len() * self.micro.count);
        for step in scalars.chunks_exact(self.replicas()) {
            let mut parts: Vec<_> = step.iter().map(|whole| self.micro.scalars(whole)).collect();
            for _ in 0..self.micro.count {
                slots.extend(parts.iter_mut().filter_map(Iterator::next));
            }
        }
        slots
    }

    /// Runs one step a dispatch at a time, handing what a micro-batch or the update wrote to `find` until
    /// that has found something.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device is lost or refuses.
    pub fn trace_blocking<T>(
        &self,
        gpu: &Gpu,
        scalars: &[step::Step],
        mut find: impl FnMut(Vec<Traced>) -> Option<T>,
    ) -> Result<Option<T>> {
        self.stats.fill_bits(gpu, 0);
        self.report.fill_bits(gpu, 0);
        if self.update.is_some() {
            self.gradient.whole.fill_bits(gpu, 0);
        }
        // A trace runs in the first slot.
        for slot in self.in_slots(scalars).chunks_exact(self.replicas()) {
            step::write(gpu, &self.ring, slot)?;
            if let Some(found) = find(self.program.trace_blocking(gpu)?) {
                return Ok(Some(found));
            }
        }
        match &self.update {
            Some(update) => Ok(find(update.trace_blocking(gpu)?)),
            None => Ok(None),
        }
    }

    /// Writes the scalars of one step without running it, for profiles.
    ///
    /// # Errors
    /// As [`step::write`].
    pub fn prepare(&self, gpu: &Gpu, scalars: &[step::Step]) -> Result<()> {
        step::write(gpu, &self.ring, &self.in_slots(scalars))
    }

    /// Reads a metrics copy: the tally of a submission's step number `step` and of `replica`.
    pub fn tally(&self, raw: &[u32], step: usize, replica: usize, rows: u32) -> Tally {
        let n = rows as f32;
        let slots = step * self.micro.count..(step + 1) * self.micro.count;
        // The update sees the last slot.
        let held = self.norms.as_ref().is_some_and(|n| {
            let row = replica * n.replica_stride + n.offset + (slots.end - 1) * norm::WIDTH;
            f32::from_bits(raw[row + 2]) > 0.0
        });
        // The arena of a replica: the sums of all slots, then their norms.
        let at = |slot| replica * self.report.replica_stride + slot * metrics::WIDTH;
        let mut sums = [0f32; metrics::WIDTH];
        for (i, slot) in slots.enumerate() {
            let [_, own] = self.micro.part(i, rows);
            // The weights of a micro-batch were times its share of the rows, and the norms' squares so twice.
            let share = if own == rows { 1.0 } else { own.max(1) as f32 / n };
            for (j, sum) in sums.iter_mut().enumerate() {
                let of_weights = if j < 6 { 1.0 } else { share * share };
                *sum += f32::from_bits(raw[at(slot) + j]) / of_weights;
            }
        }
        let [hard, soft, correct, agree, bad, labelled, hard_norm, soft_norm] = sums;
        let (mut feature_loss, mut bad) = (0.0, bad);
        for (sums, weight) in self.feature_sums.iter().zip(&self.feature_weights) {
            let row = replica * sums.replica_stride + sums.offset + step * metrics::WIDTH;
            feature_loss += weight * f32::from_bits(raw[row]) / n;
            bad += f32::from_bits(raw[row + 4]);
        }
        Tally {
            rows,
            labelled,
            hard_loss: hard / n,
            soft_loss: soft / n,
            accuracy: correct / labelled.max(1.0),
            agreement: agree / n,
            feature_loss,
            non_finite: bad,
            gradient_norms: [hard_norm, soft_norm],
            held,
        }
    }
}

pub(super) fn record_update(
    plan: &mut Plan<'_>,
    optimizer: Optimizer,
    ring: &Tensor,
    gradient: &Tensor,
    weight: &Tensor,
    moments: &[Tensor],
    norms: Option<&Tensor>,
) -> Result<()> {
    match optimizer {
        Optimizer::Sgd { nesterov, weight_decay, .. } => {
            let decay = weight_decay as f32;
            sgd::record(plan, "sgd", nesterov, decay, ring, gradient, weight, &moments[0], norms)
        }
        Optimizer::Adam(a) | Optimizer::KerasAdam(a) => {
            adam::record(plan, "adam", &a, ring, gradient, weight, [&moments[0], &moments[1]], norms)
        }
    }
}
