//! The lists of the kernels that regularise.

use super::{Counter, padding, pick};
use crate::kernels::dropout::Drop;
use crate::verify::inputs::Data;
use crate::verify::{Case, dropout, max_norm};

pub(super) fn dropouts(sizes: &[[usize; 2]]) -> Vec<Case> {
    let mut i = Counter::default();
    let mut all = Vec::new();
    for [batch, width] in sizes {
        for add in [false, true] {
            for replicas in [1, 3] {
                let i = i.next();
                let drop = Drop { rate: pick(&[0.5, 0.2, 0.9, 0.0], i, 4), layer: pick(&[0, 1, 7], i, 7) };
                all.push(Case::Dropout(dropout::Case {
                    batch: *batch,
                    width: *width,
                    replicas,
                    one_input: pick(&[true, false], i, 5),
                    add,
                    drop,
                    padding: padding(i),
                    data: pick(&Data::ALL, i, 1),
                    seed: i as u64,
                }));
            }
        }
    }
    all
}

pub(super) fn max_norms(sizes: &[[usize; 2]]) -> Vec<Case> {
    let mut i = Counter::default();
    let mut all = Vec::new();
    for [rows, width] in sizes {
        for guarded in [false, true] {
            for replicas in [1, 3] {
                let i = i.next();
                all.push(Case::MaxNorm(max_norm::Case {
                    rows: *rows,
                    width: *width,
                    replicas,
                    limit: pick(&[0.5, 3.0, 8.0], i, 4),
                    guarded,
                    padding: padding(i),
                    // Every option meets ordinary numbers, on which it shows, and in turn the hard ones.
                    data: if replicas == 3 { Data::Random } else { pick(&Data::ALL, i, 1) },
                    seed: i as u64,
                }));
            }
        }
    }
    all
}
