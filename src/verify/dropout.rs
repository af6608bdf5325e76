//! Dropout against the masks that the host's generator makes.

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::kernels::dropout::{self, Drop};
use crate::kernels::step::{self, Step};
use crate::reference::{Bounded, Rounded};
use crate::rng::{self, stream};
use crate::verify::inputs::{Data, Inputs};
use crate::verify::zone::{Padding, Zone};
use crate::verify::{Judge, Verdict, run};

/// One batch of a layer's inputs.
#[derive(Clone, Debug)]
pub struct Case {
    /// Rows of the batch.
    pub batch: usize,
    /// Of the layer.
    pub width: usize,
    /// Replicas.
    pub replicas: usize,
    /// All replicas have one input, and each its own mask.
    pub one_input: bool,
    /// On top of what the output holds.
    pub add: bool,
    /// Rate and layer.
    pub drop: Drop,
    /// Of both tensors.
    pub padding: Padding,
    /// Kind of the values.
    pub data: Data,
    /// Of the inputs, and of the masks.
    pub seed: u64,
}

impl Case {
    pub(super) fn variant(&self) -> String {
        if self.add { "add" } else { "write" }.to_owned()
    }
}

/// Whether each element of a batch `[rows, cols]` is kept in step `step`, counted from 1, by the replica of
/// this seed; `groups` are the vec4 of a row.
pub fn kept(
    seed: u64,
    step: u32,
    drop: Drop,
    [rows, cols]: [usize; 2],
    groups: usize,
) -> impl Iterator<Item = bool> {
    let key = [rng::key32(seed), 0];
    (0..rows).flat_map(move |i| {
        (0..cols).map(move |j| {
            let at = (i * groups + j / 4) as u32;
            let words = rng::philox(key, [at, step, stream::DROPOUT, drop.layer as u32]);
            words[j % 4] >= drop.threshold()
        })
    })
}

/// See [`super::Case::check`].
///
/// # Errors
/// As [`super::Case::check`].
pub fn check(gpu: &Gpu, case: &Case) -> Result<Verdict> {
    const SLOT: usize = 1;
    let Case { batch, width, replicas, add, drop, padding, data, .. } = *case;
    let mut inputs = Inputs::new(case.seed);
    let mut tensor = |name, replicas| -> Result<(Zone, Vec<Vec<f32>>)> {
        let values: Vec<Vec<f32>> = (0..replicas).map(|_| inputs.values(data, batch, width, 1e15)).collect();
        Ok((Zone::filled(gpu, name, [replicas, batch, width], padding, &values.concat())?, values))
    };
    let sources = if case.one_input { 1 } else { replicas };
    let (x, x_values) = tensor("x", sources)?;
    let (begun, before) = tensor("y", replicas)?;
    let y = if add { begun } else { Zone::output(gpu, "y", [replicas, batch, width], padding)? };
    let ring = step::ring(gpu, replicas)?;
    let seed = |r: usize| case.seed.wrapping_add((r as u64) << 40);
    let number = |slot: usize| 1000 + slot as u32;
    let scalars: Vec<Step> = (0..(SLOT + 1) * replicas)
        .map(|i| Step { step: number(i / replicas), seed: rng::key32(seed(i % replicas)), ..Step::default() })
        .collect();
    step::write(gpu, &ring, &scalars)?;
    // With `add` the first slot's part stays in the sum.
    run(gpu, SLOT as u32 + 1, |plan| {
        dropout::record(plan, "check.dropout", drop, add, &ring, &x.tensor, &y.tensor)
    })?;

    let mut judge = Judge::new();
    let y = y.read(gpu)?;
    let groups = x.tensor.row_stride / 4;
    let scale = Rounded::parameter(drop.scale());
    for r in 0..replicas {
        let exact = |v: f32| Rounded::exact(f64::from(v));
        let of_slot = |slot| -> Vec<Rounded> {
            let kept = kept(seed(r), number(slot), drop, [batch, width], groups);
            let values = x_values[r % sources].iter();
            kept.zip(values).map(|(kept, x)| if kept { exact(*x) * scale } else { exact(0.0) }).collect()
        };
        let mut expected = of_slot(SLOT);
        if add {
            let parts = before[r].iter().zip(of_slot(0)).zip(expected);
            expected = parts.map(|((y, first), second)| exact(*y) + first + second).collect();
        }
        judge.hold("y", r, &y.replica(r), &Bounded::from_rounded(batch, width, &expected), 1);
    }
    judge.guard(&y, |_| true);
    Ok(judge.verdict("dropout", case.variant(), case))
}
