//! The feature losses against [`crate::reference::features`].

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::gpu::program::SLOTS;
use crate::kernels::feature::{self, Feature, Kind};
use crate::kernels::metrics::WIDTH;
use crate::kernels::step::{self, Step};
use crate::reference::{Bounded, Matrix, Rounded, features};
use crate::verify::inputs::{Data, Inputs};
use crate::verify::zone::{Padding, Zone};
use crate::verify::{Judge, Verdict};

/// One batch of a hidden layer.
#[derive(Clone, Debug)]
pub struct Case {
    /// Which loss.
    pub kind: Kind,
    /// Rows of the batch.
    pub batch: usize,
    /// Rows that the step fills; the others become zero.
    pub rows: usize,
    /// Of the teacher's layer; a Gram matrix is as wide as the batch.
    pub width: usize,
    /// Replicas.
    pub replicas: usize,
    /// All replicas have one teacher.
    pub one_teacher: bool,
    /// Of the loss.
    pub weight: f64,
    /// Of all tensors but the statistics.
    pub padding: Padding,
    /// Kind of the features.
    pub data: Data,
    /// Of the inputs.
    pub seed: u64,
}

/// The slot that the case runs in: not the first.
const SLOT: usize = 1;

/// See [`super::Case::check`].
///
/// # Errors
/// As [`super::Case::check`].
pub fn check(gpu: &Gpu, case: &Case) -> Result<Verdict> {
    let Case { kind, batch, rows, replicas, weight, padding, data, .. } = *case;
    let width = if kind == Kind::Similarity { batch } else { case.width };
    let teachers = if case.one_teacher { 1 } else { replicas };
    let mut inputs = Inputs::new(case.seed);
    let mut side = |name, replicas| -> Result<(Zone, Vec<Vec<f32>>)> {
        let values: Vec<Vec<f32>> = (0..replicas).map(|_| inputs.values(data, batch, width, 1e6)).collect();
        Ok((Zone::filled(gpu, name, [replicas, batch, width], padding, &values.concat())?, values))
    };
    let (a, a_values) = side("a", replicas)?;
    let (b, b_values) = side("b", teachers)?;
    let d = Zone::output(gpu, "d", [replicas, batch, width], padding)?;
    let across = Padding { row: 0, ..padding };
    let stats = Zone::output(gpu, "stats", [replicas, SLOTS as usize * batch, WIDTH], across)?;
    let ring = step::ring(gpu, replicas)?;
    let now = Step { rows: rows as u32, ..Step::default() };
    step::write(gpu, &ring, &vec![now; (SLOT + 1) * replicas])?;
    super::run(gpu, SLOT as u32 + 1, |plan| {
        let feature =
            Feature { steps: &ring, a: &a.tensor, b: &b.tensor, d: &d.tensor, stats: &stats.tensor, weight };
        feature::record(plan, "check.feature", kind, &feature)
    })?;

    let mut judge = Judge::new();
    let (d, stats) = (d.read(gpu)?, stats.read(gpu)?);
    let live = if kind == Kind::Similarity { rows } else { width };
    let part = |values: &[f32]| {
        let all = Matrix::from_f32(batch, width, values);
        let data = (0..rows).flat_map(|i| all.row(i)[..live].to_vec()).collect();
        Matrix::new(rows, live, data)
    };
    let zero = Rounded::exact(0.0);
    for r in 0..replicas {
        let (a, b) = (part(&a_values[r]), part(&b_values[r % teachers]));
        let expected = match kind {
            Kind::Hint => features::hint(&a, &b, weight),
            Kind::Similarity => features::similarity(&a, &b, weight),
        };
        let element = |i: usize, j: usize| match i < rows && j < live {
            true => expected.d.to_rounded(1)[i * live + j],
            false => zero,
        };
        let whole: Vec<Rounded> =
            (0..batch).flat_map(|i| (0..width).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect();
        judge.hold("d", r, &d.replica(r), &Bounded::from_rounded(batch, width, &whole), 1);
        let of_row = |i: usize| {
            let mut row = [zero; WIDTH];
            row[0] = expected.loss.get(i).copied().unwrap_or(zero);
            row
        };
        let rows: Vec<Rounded> = (0..batch).flat_map(of_row).collect();
        let device = stats.rows(r, SLOT * batch, (SLOT + 1) * batch);
        judge.hold("stats", r, &device, &Bounded::from_rounded(batch, WIDTH, &rows), 1);
    }
    judge.guard(&d, |_| true);
    judge.guard(&stats, |row| row < (SLOT + 1) * batch);
    Ok(judge.verdict("feature", kind.name().to_owned(), case))
}
