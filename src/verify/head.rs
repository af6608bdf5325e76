//! The loss head against [`reference::Head`]: losses, metrics, gradient norms and `d_z` of every row.

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::gpu::program::SLOTS;
use crate::kernels::head::{self, Form, Head, Soft, Teacher, UNLABELLED};
use crate::kernels::metrics::WIDTH;
use crate::kernels::step::{self, Step};
use crate::reference::losses::cross_entropy;
use crate::reference::rounding::{U, dot, flushed};
use crate::reference::{self, Bounded, Matrix, Rounded, argmax};
use crate::verify::inputs::{Data, Inputs};
use crate::verify::zone::{Padding, Zone};
use crate::verify::{Judge, Verdict, run};

/// Where the teacher's logits come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// No teacher.
    Nowhere,
    /// Logits of the batch, one set per replica.
    Live,
    /// Logits of the batch, one set for all replicas.
    LiveShared,
    /// Logits of the whole set, by row number.
    Cached,
}

impl From {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Nowhere, Self::Live, Self::LiveShared, Self::Cached];
}

/// A batch of logits.
#[derive(Clone, Debug)]
pub struct Case {
    /// Rows of the batch.
    pub batch: usize,
    /// Rows that the step fills; the others become zero.
    pub rows: usize,
    /// Classes.
    pub k: usize,
    /// Replicas, each with its own logits, order, temperature and weights.
    pub replicas: usize,
    /// How a row is shared out.
    pub form: Form,
    /// Teacher.
    pub teacher: From,
    /// The soft term, where there is a teacher or none is needed.
    pub soft: Soft,
    /// All replicas see the same labels in the same order.
    pub one_order: bool,
    /// Every third row has no label.
    pub unlabelled: bool,
    /// T of the first replica; the others' are near it.
    pub temperature: f32,
    /// Weight of the hard loss.
    pub hard_weight: f32,
    /// Weight of the soft loss.
    pub soft_weight: f32,
    /// Label smoothing.
    pub smoothing: f32,
    /// Of z, v and d_z.
    pub padding: Padding,
    /// Kind of the logits.
    pub data: Data,
    /// Of the inputs.
    pub seed: u64,
}

impl Case {
    pub(super) fn variant(&self) -> String {
        let term = self.term().map_or_else(|| "hard".to_owned(), Soft::text);
        format!("{term} {}", self.form.text())
    }

    fn term(&self) -> Option<Soft> {
        (self.teacher != From::Nowhere || !self.soft.loss.needs_teacher()).then_some(self.soft)
    }

    fn scalars(&self, slot: usize, replica: usize) -> Step {
        let last = slot + 1 == SLOTS_USED;
        let r = replica as f32;
        let [loss_a, loss_b, loss_c, loss_d] = self.soft.scalars(self.k);
        Step {
            // The last slot has the case's own batch, the others one that must leave no trace in d_z.
            row_start: (slot * self.batch + replica % 3) as u32,
            rows: if last { self.rows } else { self.batch } as u32,
            temperature: if last { self.temperature * (1.0 + 0.25 * r) } else { 3.0 },
            hard_weight: self.hard_weight / (1.0 + r),
            soft_weight: self.soft_weight * (1.0 + r),
            smoothing: self.smoothing,
            loss_a,
            loss_b,
            loss_c,
            loss_d,
            ..Step::default()
        }
    }
}

/// Slots of the submission.
const SLOTS_USED: usize = 2;

/// See [`super::Case::check`].
///
/// # Errors
/// As [`super::Case::check`].
pub fn check(gpu: &Gpu, case: &Case) -> Result<Verdict> {
    let Case { batch, k, replicas, padding, data, .. } = *case;
    let mut inputs = Inputs::new(case.seed);
    let items = SLOTS_USED * batch + 7;
    let mut logits = |data: Data, rows: usize, sets: usize| -> Vec<Vec<f32>> {
        (0..sets).map(|_| inputs.logits(data, rows, k)).collect()
    };
    let z = logits(data, batch, replicas);
    // A student without a preference beside a teacher that has one: two of one kind cancel.
    let data = if data == Data::EqualRows && case.seed.is_multiple_of(2) { Data::Random } else { data };
    let (v_rows, v_sets) = match case.teacher {
        From::Nowhere => (0, 0),
        From::Live => (batch, replicas),
        From::LiveShared => (batch, 1),
        From::Cached => (items, 1),
    };
    let v = logits(data, v_rows, v_sets);
    let z_zone = Zone::filled(gpu, "z", [replicas, batch, k], padding, &z.concat())?;
    let v_zone = Zone::filled(
        gpu,
        "v",
        [v_sets.max(1), v_rows.max(1), k],
        padding,
        &match v.is_empty() {
            true => vec![0.0; k],
            false => v.concat(),
        },
    )?;
    let teacher = match case.teacher {
        From::Nowhere => Teacher::None,
        From::Live | From::LiveShared => Teacher::Live(v_zone.tensor.clone()),
        From::Cached => Teacher::Cached(v_zone.tensor.clone()),
    };
    let sets = if case.one_order { 1 } else { replicas };
    let order = inputs.indices(sets * items, items);
    let mut labels = inputs.indices(sets * items, k);
    if case.unlabelled {
        labels.iter_mut().step_by(3).for_each(|l| *l = UNLABELLED);
    }
    let order_zone = Zone::filled(gpu, "order", [sets, 1, items], padding, &order)?;
    let labels_zone = Zone::filled(gpu, "labels", [sets, 1, items], padding, &labels)?;
    let d_z = Zone::output(gpu, "d_z", [replicas, batch, k], padding)?;
    let stats_rows = SLOTS as usize * batch;
    let stats = Zone::output(
        gpu,
        "stats",
        [replicas, stats_rows, WIDTH],
        Padding { row: 0, replica: padding.replica },
    )?;
    let ring = step::ring(gpu, replicas)?;
    let scalars: Vec<Step> =
        (0..SLOTS_USED * replicas).map(|i| case.scalars(i / replicas, i % replicas)).collect();
    step::write(gpu, &ring, &scalars)?;
    run(gpu, SLOTS_USED as u32, |plan| {
        let io = Head {
            steps: &ring,
            order: &order_zone.tensor,
            labels: &labels_zone.tensor,
            z: &z_zone.tensor,
            teacher: &teacher,
            soft: case.soft,
            d_z: &d_z.tensor,
            stats: &stats.tensor,
        };
        head::record(plan, "check.head", &io, case.form)
    })?;

    let mut judge = Judge::new();
    let (d_z, stats) = (d_z.read(gpu)?, stats.read(gpu)?);
    for r in 0..replicas {
        for slot in 0..SLOTS_USED {
            let now = case.scalars(slot, r);
            let index = |row: usize| order[(r % sets) * items + now.row_start as usize + row] as usize;
            let label = |row: usize| match labels[(r % sets) * items + index(row)] {
                UNLABELLED => None,
                label => Some(label as usize),
            };
            let live = now.rows as usize;
            let z = Matrix::from_f32(live, k, &z[r][..live * k]);
            let v = match case.teacher {
                From::Nowhere => None,
                From::Live => Some(Matrix::from_f32(live, k, &v[r][..live * k])),
                From::LiveShared => Some(Matrix::from_f32(live, k, &v[0][..live * k])),
                From::Cached => {
                    let rows: Vec<usize> = (0..live).map(index).collect();
                    Some(Matrix::from_f32(items, k, &v[0]).gather(&rows))
                }
            };
            let labels: Vec<Option<usize>> = (0..live).map(label).collect();
            let expected = expect(&now, case, &z, v.as_ref(), &labels);
            let device = stats.rows(r, slot * batch, (slot + 1) * batch);
            judge.hold(&format!("stats slot {slot}"), r, &device, &expected.stats, 1);
            if slot + 1 == SLOTS_USED {
                judge.hold("d_z", r, &d_z.replica(r), &expected.d_z, 1);
            }
        }
    }
    judge.guard(&d_z, |_| true);
    judge.guard(&stats, |row| row < SLOTS_USED * batch);
    Ok(judge.verdict("head", case.variant(), case))
}

struct Expected {
    stats: Bounded,
    d_z: Bounded,
}

/// Whether a maximum is where it should be. A device may read subnormal logits as zeros, and then the
/// first of them is the largest: so where that makes a difference, either answer is right.
fn hit(exact: bool, flushed: bool) -> Rounded {
    let value = if exact { 1.0 } else { 0.0 };
    Rounded { value, error: if exact == flushed { 0.0 } else { 1.0 / U } }
}

/// Everything the head writes for the live rows of one step, and zeros up to `batch`.
fn expect(now: &Step, case: &Case, z: &Matrix, v: Option<&Matrix>, labels: &[Option<usize>]) -> Expected {
    let (batch, k) = (case.batch, case.k);
    let head = reference::Head {
        hard_weight: f64::from(now.hard_weight),
        soft_weight: f64::from(now.soft_weight),
        temperature: f64::from(now.temperature),
        label_smoothing: f64::from(now.smoothing),
        soft_loss: case.soft.loss,
        standardise: case.soft.standardise,
    };
    let out = head.evaluate(z, v, labels);
    let (hard, soft) = (out.hard_loss.to_rounded(1), out.soft_loss.to_rounded(1));
    let exact = |b: bool| Rounded::exact(if b { 1.0 } else { 0.0 });
    let square = |weight: f64, d: &[Rounded]| {
        let weighted: Vec<Rounded> = d.iter().map(|d| Rounded::parameter(weight) * *d).collect();
        dot(&weighted, &weighted)
    };
    let mut stats = Vec::with_capacity(batch * WIDTH);
    for (row, label) in labels.iter().enumerate() {
        let hard_norm = label.map(|label| {
            square(head.hard_weight, &cross_entropy(z.row(row), label, head.label_smoothing).d_z)
        });
        let taught = case.term().is_some() && (label.is_some() || !head.soft_loss.needs_labels());
        let soft_norm = taught.then(|| {
            // A virtual teacher's row is not read.
            let v = v.unwrap_or(z).row(row);
            let (loss, t) = (head.soft_loss, head.temperature);
            square(head.soft_weight, &loss.evaluate(z.row(row), v, *label, t, head.standardise).d_z)
        });
        let zero = Rounded::exact(0.0);
        let top =
            |m: &Matrix| argmax(&m.row(row).iter().map(|x| x - x.signum() * flushed(*x)).collect::<Vec<_>>());
        let correct = *label == Some(top(z));
        let agrees = v.is_some_and(|v| top(z) == top(v));
        stats.extend([
            hard[row],
            soft[row],
            hit(out.correct[row], correct),
            hit(out.agrees[row], agrees),
            zero,
            exact(label.is_some()),
            hard_norm.unwrap_or(zero),
            soft_norm.unwrap_or(zero),
        ]);
    }
    let mut d_z = out.d_z.to_rounded(1);
    stats.resize(batch * WIDTH, Rounded::exact(0.0));
    d_z.resize(batch * k, Rounded::exact(0.0));
    Expected {
        stats: Bounded::from_rounded(batch, WIDTH, &stats),
        d_z: Bounded::from_rounded(batch, k, &d_z),
    }
}
