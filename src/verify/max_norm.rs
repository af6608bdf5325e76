//! Max-norm against [`crate::reference::optimizer::max_norm`], row by row.

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::gpu::program::SLOTS;
use crate::kernels::{max_norm, norm};
use crate::reference::optimizer;
use crate::reference::{Bounded, Rounded};
use crate::verify::inputs::{Data, Inputs};
use crate::verify::zone::{Padding, Zone};
use crate::verify::{Judge, Verdict, run};

/// The weights of one layer.
#[derive(Clone, Debug)]
pub struct Case {
    /// Units.
    pub rows: usize,
    /// Inputs of each.
    pub width: usize,
    /// Replicas.
    pub replicas: usize,
    /// The longest that a row may be.
    pub limit: f32,
    /// The step changes nothing of the first replica.
    pub guarded: bool,
    /// Of the weights.
    pub padding: Padding,
    /// Kind of the weights.
    pub data: Data,
    /// Of the inputs.
    pub seed: u64,
}

impl Case {
    pub(super) fn variant(&self) -> String {
        if self.guarded { "guarded" } else { "bare" }.to_owned()
    }
}

/// See [`super::Case::check`].
///
/// # Errors
/// As [`super::Case::check`].
pub fn check(gpu: &Gpu, case: &Case) -> Result<Verdict> {
    let Case { rows, width, replicas, limit, guarded, padding, data, seed } = *case;
    let mut inputs = Inputs::new(seed);
    let values: Vec<Vec<f32>> = (0..replicas).map(|_| inputs.values(data, rows, width, 1e15)).collect();
    let weight = Zone::filled(gpu, "weight", [replicas, rows, width], padding, &values.concat())?;
    // Of a guarded case the first slot holds all replicas, the second the first one alone.
    let slots = SLOTS as usize;
    let scale = |r, slot| if slot == 1 && r > 0 { 1.0 } else { 0.0 };
    let scales = (0..replicas).flat_map(|r| (0..slots).flat_map(move |slot| [1.0, scale(r, slot), 0.0, 0.0]));
    let scales: Vec<f32> = scales.collect();
    let norms = Zone::filled(gpu, "norms", [replicas, slots, norm::WIDTH], Padding::NONE, &scales)?;
    run(gpu, if guarded { 2 } else { 1 }, |plan| {
        let norms = guarded.then_some(&norms.tensor);
        max_norm::record(plan, "check.max_norm", limit, &weight.tensor, norms)
    })?;

    let mut judge = Judge::new();
    let weight = weight.read(gpu)?;
    for (r, values) in values.iter().enumerate() {
        let of_row = |row: &[f32]| -> Vec<Rounded> {
            let row: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
            match guarded && r == 0 {
                true => row.into_iter().map(Rounded::exact).collect(),
                false => optimizer::max_norm(&row, f64::from(limit)),
            }
        };
        let expected: Vec<Rounded> = values.chunks_exact(width).flat_map(of_row).collect();
        judge.hold("weight", r, &weight.replica(r), &Bounded::from_rounded(rows, width, &expected), 1);
    }
    judge.guard(&weight, |_| true);
    Ok(judge.verdict("max_norm", case.variant(), case))
}
