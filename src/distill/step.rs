//! One training step as a program: gather, teacher forward, student forward, loss head, backward,
//! optimiser; recorded once, run many times.

use std::ops::Range;

use crate::distill::features::{Features, Pull};
use crate::distill::feed::Feed;
pub use crate::distill::loss::Loss;
use crate::distill::regularize::Regularize;
pub use crate::distill::teacher::Teacher;
use crate::error::Result;
use crate::gpu::plan::SLOTS;
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
pub struct Step {
    program: Program,
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
    /// [`crate::Error::Usage`] where layers, classes and data do not fit; [`crate::Error::Device`] for memory
    /// and limits.
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
        batch: usize,
    ) -> Result<Self> {
        regularize.check()?;
        let student = Mlp::upload(gpu, "student", students)?;
        let gradient = Mlp::zeros(gpu, "d_student", students.len(), &student.sizes, student.activation)?;
        let ring = step::ring(gpu, students.len())?;
        let mut plan = Plan::new(gpu);
        let x = feed.record(&mut plan, &ring, batch, None)?;
        let mut beside = Vec::new();
        let taught = teacher.record(&mut plan, feed, &ring, &x, students.len(), &mut beside)?;
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
        student.record_backward(&mut plan, &x, &forward, &d_z, &features.d_hidden, &gradient)?;
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
        if let Some(norms) = &norms {
            norm::record(&mut plan, "norm", guard.clip.map(|c| c as f32), &gradient.whole, norms)?;
        }
        let [gradients, weights] = [&gradient.whole, &student.whole];
        record_update(&mut plan, optimizer, &ring, gradients, weights, &moments, norms.as_ref())?;
        regularize.record_update(&mut plan, &student, norms.as_ref())?;

        features.record_update(&mut plan, optimizer, &ring, norms.as_ref())?;

        let mut tally = Plan::new(gpu);
        metrics::record(&mut tally, "metrics", &stats, &views[0])?;
        let feature_sums = views[views.len() - pull.features.len()..].to_vec();
        for (stats, sums) in features.stats.iter().zip(&feature_sums) {
            metrics::record(&mut tally, &sums.label, stats, sums)?;
        }
        let feature_weights = pull.features.iter().map(|f| f.weight as f32).collect();
        Ok(Self {
            program: plan.finish()?,
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

    /// The step's dispatches, for profiles and traces.
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

    /// Submits the steps given as `scalars[slot * replicas + replica]` in one submission, followed
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
        step::write(gpu, &self.ring, scalars)?;
        let steps = (scalars.len() / self.student.whole.shape[0]) as u32;
        flights.submit(gpu, &[(&self.program, steps), (&self.tally, 1)], Some((what, &self.report)))
    }

    /// Zeroes what earlier submissions reported, for a trace: a step writes its own slot alone.
    pub fn forget_reports(&self, gpu: &Gpu) {
        self.stats.fill_bits(gpu, 0);
        self.report.fill_bits(gpu, 0);
    }

    /// Writes the scalars of one step without running it, for traces and profiles.
    ///
    /// # Errors
    /// As [`step::write`].
    pub fn prepare(&self, gpu: &Gpu, scalars: &[step::Step]) -> Result<()> {
        step::write(gpu, &self.ring, scalars)
    }

    /// Reads a metrics copy: the tally of `slot` and `replica`.
    pub fn tally(&self, raw: &[u32], slot: usize, replica: usize, rows: u32) -> Tally {
        // The arena of a replica: the sums of all slots, then their norms.
        let at = replica * self.report.replica_stride + slot * metrics::WIDTH;
        let held = self.norms.as_ref().is_some_and(|n| {
            let row = replica * n.replica_stride + n.offset + slot * norm::WIDTH;
            f32::from_bits(raw[row + 2]) > 0.0
        });
        let [hard, soft, correct, agree, bad, labelled, hard_norm, soft_norm] =
            std::array::from_fn(|i| f32::from_bits(raw[at + i]));
        let n = rows as f32;
        let (mut feature_loss, mut bad) = (0.0, bad);
        for (sums, weight) in self.feature_sums.iter().zip(&self.feature_weights) {
            let row = replica * sums.replica_stride + sums.offset + slot * metrics::WIDTH;
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
