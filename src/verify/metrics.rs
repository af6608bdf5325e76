//! The reduction of the statistics against [`crate::reference::linalg::column_sums`].

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::gpu::program::SLOTS;
use crate::kernels::metrics::{self, WIDTH};
use crate::reference::Matrix;
use crate::reference::linalg::column_sums;
use crate::verify::inputs::{Data, Inputs};
use crate::verify::zone::{Padding, Zone};
use crate::verify::{Judge, Verdict, run};

/// The statistics of a whole submission.
#[derive(Clone, Debug)]
pub struct Case {
    /// Rows of a batch.
    pub batch: usize,
    /// Replicas.
    pub replicas: usize,
    /// Between replicas only.
    pub padding: Padding,
    /// Kind of the statistics.
    pub data: Data,
    /// Of the inputs.
    pub seed: u64,
}

/// See [`super::Case::check`].
///
/// # Errors
/// As [`super::Case::check`].
pub fn check(gpu: &Gpu, case: &Case) -> Result<Verdict> {
    let Case { batch, replicas, data, .. } = *case;
    let slots = SLOTS as usize;
    let padding = Padding { row: 0, ..case.padding };
    let mut inputs = Inputs::new(case.seed);
    let rows: Vec<Vec<f32>> =
        (0..replicas).map(|_| inputs.values(data, slots * batch, WIDTH, 1e15)).collect();
    let stats = Zone::filled(gpu, "stats", [replicas, slots * batch, WIDTH], padding, &rows.concat())?;
    let metrics = Zone::output(gpu, "metrics", [replicas, slots, WIDTH], padding)?;
    run(gpu, 1, |plan| metrics::record(plan, "check.metrics", &stats.tensor, &metrics.tensor))?;

    let mut judge = Judge::new();
    let metrics = metrics.read(gpu)?;
    for (r, rows) in rows.iter().enumerate() {
        for slot in 0..slots {
            let of_slot = &rows[slot * batch * WIDTH..][..batch * WIDTH];
            let sums = column_sums(&Matrix::from_f32(batch, WIDTH, of_slot));
            judge.hold(&format!("metrics slot {slot}"), r, &metrics.rows(r, slot, slot + 1), &sums, batch);
        }
    }
    judge.guard(&metrics, |_| true);
    Ok(judge.verdict("metrics", String::new(), case))
}
