//! The lists of batches.

use super::{Counter, padding, pick};
use crate::kernels::gather::Jitter;
use crate::verify::inputs::Data;
use crate::verify::{Case, gather};

/// An image of so many numbers, as square as may be, in colour where they come in threes.
fn image(features: usize, reach: usize) -> Jitter {
    let channels = if features.is_multiple_of(3) { 3 } else { 1 };
    let pixels = features / channels;
    let height = (1..=pixels.isqrt()).rev().find(|h| pixels.is_multiple_of(*h)).unwrap_or(1);
    Jitter { height, width: pixels / height, channels, reach }
}

pub(super) fn all(sizes: &[[usize; 2]]) -> Vec<Case> {
    let mut i = Counter::default();
    let mut all = Vec::new();
    for [batch, features] in sizes {
        for (bytes, moves) in [(false, false), (true, false), (false, true), (true, true)] {
            for replicas in [1, 3] {
                let i = i.next();
                all.push(Case::Gather(gather::Case {
                    batch: *batch,
                    rows: if pick(&[true, false, false], i, 4) { batch / 2 } else { *batch },
                    features: *features,
                    items: pick(&[1, 31, 64, 257], i, 11),
                    replicas,
                    one_order: pick(&[true, false], i, 5),
                    bytes,
                    chunks: pick(&[1, 2, 3], i, 12),
                    jitter: moves.then(|| image(*features, pick(&[1, 2, 5], i, 21))),
                    padding: padding(i),
                    data: pick(&Data::ALL, i, 1),
                    seed: i as u64,
                }));
            }
        }
    }
    all
}
