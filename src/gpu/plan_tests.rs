//! The order and the barriers of dispatches, held to the elements that they touch, counted one by one.

use std::collections::HashSet;

use super::*;
use crate::gpu::AdapterChoice;
use crate::rng::{block, stream};

/// The elements of a view, padding included.
fn elements(t: &Tensor) -> HashSet<usize> {
    let replica = |r: usize| t.offset + r * t.replica_stride;
    (0..t.shape[0]).flat_map(|r| replica(r)..replica(r) + t.replica_len()).collect()
}

fn meet(a: &[Operand], b: &[Operand]) -> bool {
    let both = |a: &Operand, b: &Operand| {
        a.tensor.buffer == b.tensor.buffer && !elements(&a.tensor).is_disjoint(&elements(&b.tensor))
    };
    a.iter().any(|a| b.iter().any(|b| (a.written || b.written) && both(a, b)))
}

#[test]
fn what_meets_keeps_its_order_and_has_a_barrier_between() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
    let parts =
        [("p", 3, 5), ("q", 2, 70), ("r", 1, 1)].map(|(name, rows, cols)| (name.to_owned(), rows, cols));
    let (whole, mut views) = Tensor::arena(&gpu, "arena", 3, &parts).expect("an arena");
    views.extend([views[0].rows(1..3), views[1].rows(0..1), views[1].rows(1..2), views[0].replica(1)]);
    views.extend([whole.replica(0), whole.replica(2), whole]);
    views.push(Tensor::zeros(&gpu, "alone", [1, 4, 4]).expect("a tensor"));
    let (mut moved, mut together) = (0, 0);
    for program in 0..300u64 {
        let mut draws = 0;
        let mut draw = |n: usize| {
            draws += 1;
            block(program, stream::CHECK, draws)[0] as usize % n
        };
        let dispatches: Vec<Vec<Operand>> = (0..8)
            .map(|_| {
                let operands = 0..1 + draw(2);
                let operand = |_| Operand {
                    name: String::new(),
                    written: draw(3) == 0,
                    tensor: views[draw(views.len())].clone(),
                };
                operands.map(operand).collect()
            })
            .collect();
        let slices: Vec<_> = dispatches.iter().map(Vec::as_slice).collect();
        let order = by_depth(&slices);
        let seen: HashSet<_> = order.iter().map(|(i, _)| *i).collect();
        assert_eq!((seen.len(), order.len()), (8, 8), "each once");
        for (at, (i, _)) in order.iter().enumerate() {
            let mut waited = false;
            for (j, waits) in &order[at + 1..] {
                waited |= waits;
                if meet(slices[*i], slices[*j]) {
                    assert!(i < j, "{i} and {j} meet and have changed places");
                    assert!(waited, "{i} and {j} meet and may be under way at once");
                } else if !waited {
                    together += 1;
                }
                moved += usize::from(i > j);
            }
        }
        assert!(!order[0].1, "the first waits for nothing");
    }
    // What is asked above holds of the recorded order with a barrier everywhere, too.
    assert!(moved > 100 && together > 100, "{moved} moved, {together} together");
}
