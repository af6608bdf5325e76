//! The gradient's norm and scale against [`crate::reference::optimizer::clipped`].

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::gpu::program::SLOTS;
use crate::kernels::norm;
use crate::reference::optimizer::clipped;
use crate::reference::{Bounded, Rounded};
use crate::verify::inputs::{Data, Inputs};
use crate::verify::zone::{Padding, Zone};
use crate::verify::{Judge, Verdict, run};

/// One gradient of each replica.
#[derive(Clone, Debug)]
pub struct Case {
    /// Parameters of a replica.
    pub len: usize,
    /// Replicas.
    pub replicas: usize,
    /// The largest norm that stays as it is.
    pub clip: Option<f32>,
    /// Kind of the gradient.
    pub data: Data,
    /// Of the inputs.
    pub seed: u64,
}

/// See [`super::Case::check`].
///
/// # Errors
/// As [`super::Case::check`].
pub fn check(gpu: &Gpu, case: &Case) -> Result<Verdict> {
    let Case { len, replicas, clip, data, seed } = *case;
    let mut inputs = Inputs::new(seed);
    let values: Vec<Vec<f32>> = (0..replicas).map(|_| inputs.values(data, 1, len, 1e15)).collect();
    let gradient = Zone::filled(gpu, "gradient", [replicas, 1, len], Padding::NONE, &values.concat())?;
    let partial = Zone::output_unpadded(gpu, "partial", [1, 1, replicas * norm::partials(len)])?;
    let norms = Zone::output(gpu, "norms", [replicas, SLOTS as usize, norm::WIDTH], Padding::NONE)?;
    // Two steps: each has a row of its own.
    run(gpu, 2, |plan| {
        norm::record_with(plan, "check.norm", clip, &gradient.tensor, &partial.tensor, &norms.tensor)
    })?;

    let mut judge = Judge::new();
    let norms = norms.read(gpu)?;
    for (r, values) in values.iter().enumerate() {
        let row: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
        let [norm, scale] = clipped(&row, f64::from(clip.unwrap_or(f32::MAX)));
        let zero = Rounded::exact(0.0);
        let expected = Bounded::from_rounded(1, norm::WIDTH, &[norm, scale, zero, zero]);
        for slot in 0..2 {
            judge.hold("norms", r, &norms.rows(r, slot, slot + 1), &expected, 1);
        }
    }
    judge.guard(&norms, |slot| slot < 2);
    judge.guard(&partial.read(gpu)?, |_| true);
    Ok(judge.verdict("norm", String::new(), case))
}
