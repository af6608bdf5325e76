//! The gather against `x = source[order] * gain + shift`, row by row.

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::kernels::gather::{self, Jitter, Source};
use crate::kernels::step::{self, Step};
use crate::reference::{Bounded, Rounded};
use crate::rng::{self, stream};
use crate::verify::inputs::{Data, Inputs};
use crate::verify::zone::{Padding, Zone};
use crate::verify::{Judge, Verdict, run};

/// A batch from `items` stored rows.
#[derive(Clone, Debug)]
pub struct Case {
    /// Rows of the batch.
    pub batch: usize,
    /// Rows that the step fills; the others become zero.
    pub rows: usize,
    /// Columns.
    pub features: usize,
    /// Stored rows.
    pub items: usize,
    /// Replicas, each with its own order unless `one_order`.
    pub replicas: usize,
    /// All replicas walk the same order.
    pub one_order: bool,
    /// Rows are bytes, four to a word.
    pub bytes: bool,
    /// Parts that the stored rows are cut into, one dispatch each.
    pub chunks: usize,
    /// Rows are images that move.
    pub jitter: Option<Jitter>,
    /// Of x, and unless `bytes` of the stored rows.
    pub padding: Padding,
    /// Kind of the stored values.
    pub data: Data,
    /// Of the inputs.
    pub seed: u64,
}

impl Case {
    pub(super) fn variant(&self) -> String {
        let moved = if self.jitter.is_some() { ", moved" } else { "" };
        format!("{}{moved}", if self.bytes { "u8" } else { "f32" })
    }
}

/// The element that stands in the place of element `j` of row `row` of the batch in step `step`, counted
/// from 1, for the replica of this seed; `None`: the border.
pub fn moved(jitter: Jitter, seed: u64, step: u32, row: usize, j: usize) -> Option<usize> {
    let Jitter { height, width, channels, reach } = jitter;
    let words = rng::philox([rng::key32(seed), 0], [row as u32, step, stream::JITTER, 0]);
    let places = 2 * reach as u64 + 1;
    let by = |word: u32| ((u64::from(word) * places) >> 32) as i64 - reach as i64;
    let pixel = j / channels;
    let at = [(pixel % width, width, words[0]), (pixel / width, height, words[1])]
        .map(|(at, size, word)| usize::try_from(at as i64 + by(word)).ok().filter(|at| *at < size));
    let [Some(x), Some(y)] = at else { return None };
    Some((y * width + x) * channels + j % channels)
}

/// Slots of the submission; the last one's batch is what x holds at the end.
const SLOTS_USED: usize = 2;

/// See [`super::Case::check`].
///
/// # Errors
/// As [`super::Case::check`].
pub fn check(gpu: &Gpu, case: &Case) -> Result<Verdict> {
    let Case { batch, rows, features, items, replicas, bytes, jitter, data, .. } = *case;
    let mut inputs = Inputs::new(case.seed);
    // Bytes are packed four to a word, so there x has no columns but the words'.
    let padding = Padding { row: if bytes { 0 } else { case.padding.row }, ..case.padding };
    let values: Vec<f32> = match bytes {
        true => inputs.indices(items * features, 256).into_iter().map(|b| b as f32).collect(),
        false => inputs.values(data, items, features, 1e15),
    };
    let (gain, shift) = (inputs.signed(features), inputs.signed(features));
    let gain_zone = Zone::filled(gpu, "gain", [1, 1, features], padding, &gain)?;
    let shift_zone = Zone::filled(gpu, "shift", [1, 1, features], padding, &shift)?;
    let orders = if case.one_order { 1 } else { replicas };
    let order_len = 5 + SLOTS_USED * batch;
    let order = inputs.indices(orders * order_len, items);
    let order_zone = Zone::filled(gpu, "order", [orders, 1, order_len], case.padding, &order)?;
    let x = Zone::output(gpu, "x", [replicas, batch, features], padding)?;

    let mut sources = Vec::new();
    for start in (0..items).step_by(items.div_ceil(case.chunks)) {
        let range = start..(start + items.div_ceil(case.chunks)).min(items);
        let part = &values[range.start * features..range.end * features];
        let zone = match bytes {
            true => {
                let words: Vec<u32> = part.chunks_exact(features).flat_map(pack).collect();
                let shape = [1, range.len(), features.div_ceil(4)];
                Zone::filled(gpu, "source", shape, Padding::NONE, &words)?
            }
            false => Zone::filled(gpu, "source", [1, range.len(), features], padding, part)?,
        };
        sources.push(Source { rows: zone.tensor.clone(), bytes, start });
    }

    let ring = step::ring(gpu, replicas)?;
    let seed = |r: usize| case.seed.wrapping_add((r as u64) << 40);
    let number = |slot: usize| 1000 + slot as u32;
    let start = |slot: usize, r: usize| 2 + slot * batch + r % 3;
    let scalars: Vec<Step> = (0..SLOTS_USED * replicas)
        .map(|i| {
            let row_start = start(i / replicas, i % replicas) as u32;
            let (step, seed) = (number(i / replicas), rng::key32(seed(i % replicas)));
            Step { row_start, rows: rows as u32, step, seed, ..Step::default() }
        })
        .collect();
    step::write(gpu, &ring, &scalars)?;
    run(gpu, SLOTS_USED as u32, |plan| {
        for source in &sources {
            gather::record(
                plan,
                "check.gather",
                &ring,
                &order_zone.tensor,
                source,
                &gain_zone.tensor,
                &shift_zone.tensor,
                jitter,
                &x.tensor,
            )?;
        }
        Ok(())
    })?;

    let mut judge = Judge::new();
    let x = x.read(gpu)?;
    for r in 0..replicas {
        let order = &order[(r % orders) * order_len..][start(SLOTS_USED - 1, r)..];
        let expected: Vec<Rounded> = (0..batch * features)
            .map(|i| {
                let (row, j) = (i / features, i % features);
                if row >= rows {
                    return Rounded::exact(0.0);
                }
                let from = match jitter {
                    Some(jitter) => moved(jitter, seed(r), number(SLOTS_USED - 1), row, j),
                    None => Some(j),
                };
                let value = from.map_or(0.0, |j| values[order[row] as usize * features + j]);
                let [value, gain, shift] = [value, gain[j], shift[j]].map(|x| Rounded::exact(f64::from(x)));
                value * gain + shift
            })
            .collect();
        judge.hold("x", r, &x.replica(r), &Bounded::from_rounded(batch, features, &expected), 1);
    }
    judge.guard(&x, |_| true);
    Ok(judge.verdict("gather", case.variant(), case))
}

fn pack(row: &[f32]) -> Vec<u32> {
    row.chunks(4).map(|four| four.iter().rev().fold(0, |word, byte| word << 8 | *byte as u32)).collect()
}
