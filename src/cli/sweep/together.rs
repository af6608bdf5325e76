//! Points of the grid, and which students train together.

use crate::cli::grid::Value;
use crate::distill::step::Loss;
use crate::error::{Error, Result};
use crate::gpu::Gpu;

/// A point of the grid, with what it comes to.
pub struct Cell<'g> {
    /// A value for each of the grid's axes.
    pub values: Vec<&'g Value>,
    pub layers: Vec<usize>,
    pub lr: f64,
    pub loss: Loss,
}

impl Cell<'_> {
    pub fn parameters(&self) -> usize {
        self.layers.windows(2).map(|l| (l[0] + 1) * l[1]).sum()
    }

    /// So many students have tensors of batches of `rows` rows, and weights, that a shader can see at once.
    pub fn fit(&self, gpu: &Gpu, rows: usize) -> usize {
        let widest = self.layers.iter().copied().max().unwrap_or(1);
        let bytes = 4 * self.parameters().max(rows * widest) as u64;
        ((gpu.max_binding() / bytes) as usize).max(1)
    }

    /// Whether students of both can be replicas of one run.
    fn suits(&self, other: &Self) -> bool {
        self.layers == other.layers && self.loss.soft.same_kind(other.loss.soft)
    }
}

/// A cell's number and a seed.
pub type Place = (usize, u64);

/// The students that train together: of one shape and kind of loss, at most `most` of a cell, in runs of
/// about one size. Those of one seed lie together: they may share an order.
pub fn runs(cells: &[Cell<'_>], seeds: &[u64], most: impl Fn(&Cell<'_>) -> usize) -> Vec<Vec<Place>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, cell) in cells.iter().enumerate() {
        match groups.iter_mut().find(|group| cells[group[0]].suits(cell)) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    let runs = groups.iter().flat_map(|group| {
        let all: Vec<Place> = seeds.iter().flat_map(|s| group.iter().map(move |cell| (*cell, *s))).collect();
        let count = all.len().div_ceil(most(&cells[group[0]]));
        let size = all.len().div_ceil(count);
        all.chunks(size).map(<[Place]>::to_vec).collect::<Vec<_>>()
    });
    runs.collect()
}

/// Does `work` on all `items` at once or, where the device has no room for that, on one half after the other.
pub fn in_halves<T, R>(
    gpu: &Gpu,
    items: &[T],
    work: &mut dyn FnMut(&[T]) -> Result<Vec<R>>,
) -> Result<Vec<R>> {
    let error = match work(items) {
        Err(error) if items.len() > 1 => error,
        done => return done,
    };
    match &error {
        Error::Device { .. } if gpu.check().is_ok() => {}
        // The windows of all orders have to fit what the user allows.
        Error::Usage { what, .. } if what == "--device-memory" => {}
        _ => return Err(error),
    }
    let (first, second) = items.split_at(items.len().div_ceil(2));
    eprintln!("note: no room for {} students at once ({error}): {} at once", items.len(), first.len());
    let mut all = in_halves(gpu, first, work)?;
    all.extend(in_halves(gpu, second, work)?);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::head::Soft;
    use crate::reference::SoftLoss;

    #[test]
    fn students_of_a_shape_and_kind_of_loss_train_together() {
        let cell = |width, loss| {
            let loss = Loss { soft: Soft { loss, standardise: false }, soft_weight: 1.0, ..Loss::HARD };
            Cell { values: Vec::new(), layers: vec![4, width, 3], lr: 0.1, loss }
        };
        let clipped = SoftLoss::ClippedKl { clip: 0.1 };
        let cells = [
            cell(5, SoftLoss::ForwardKl),
            cell(6, SoftLoss::ForwardKl),
            cell(5, SoftLoss::ForwardKl),
            cell(5, clipped),
            cell(5, SoftLoss::ForwardKl),
        ];
        // Those of a seed lie together, and runs are of about one size.
        assert_eq!(
            runs(&cells, &[7, 9], |_| 4),
            [
                vec![(0, 7), (2, 7), (4, 7)],
                vec![(0, 9), (2, 9), (4, 9)],
                vec![(1, 7), (1, 9)],
                vec![(3, 7), (3, 9)],
            ]
        );
        assert_eq!(runs(&cells, &[7, 9], |_| 64).len(), 3);
        assert_eq!(runs(&cells, &[7, 9], |_| 1).len(), 10);
    }

    #[test]
    fn what_does_not_fit_is_done_in_halves() {
        let gpu = Gpu::open(&Default::default()).expect("a device");
        let mut sizes = Vec::new();
        let mut work = |items: &[u32]| {
            sizes.push(items.len());
            match items.len() {
                0..=2 => Ok(items.to_vec()),
                _ => Err(Error::device("allocate", "no room")),
            }
        };
        assert_eq!(in_halves(&gpu, &[1, 2, 3, 4, 5], &mut work).expect("in halves"), [1, 2, 3, 4, 5]);
        assert_eq!(sizes, [5, 3, 2, 1, 2]);
        let mut never = |_: &[u32]| Err::<Vec<u32>, _>(Error::device("allocate", "no room"));
        assert_eq!(in_halves(&gpu, &[1, 2], &mut never).expect_err("no room for one").exit_code(), 5);
        let mut wrong = |_: &[u32]| Err::<Vec<u32>, _>(Error::Run("no".to_owned()));
        assert_eq!(in_halves(&gpu, &[1, 2], &mut wrong).expect_err("its own error").exit_code(), 1);
    }
}
