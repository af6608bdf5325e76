//! Inputs for the checks: ordinary ones, and every kind on which kernels are known to break.

use crate::rng::{self, stream};

/// What the numbers look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Data {
    /// Uniform, of size 1 (logits: 6).
    #[default]
    Random,
    /// One value all along a row.
    EqualRows,
    /// Few distinct values, zero among them; a row's maximum stands in several places.
    Ties,
    /// Sizes from 1e-4 to 1e4 side by side; logits are up to 1e4 apart.
    WideGaps,
    /// Below the normal range: a device may flush them to zero.
    Subnormal,
    /// Of size 1e15; logits all lie about 1e6 from zero.
    Huge,
    /// Of size 1e-15.
    Tiny,
    /// Uniform and of one sign: a long sum grows faster than its bound, so that a forgotten part of it shows.
    Positive,
}

impl Data {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Random,
        Self::EqualRows,
        Self::Ties,
        Self::WideGaps,
        Self::Subnormal,
        Self::Huge,
        Self::Tiny,
        Self::Positive,
    ];
}

/// A stream of tensors, a pure function of the seed.
pub(super) struct Inputs {
    seed: u64,
    drawn: u64,
}

impl Inputs {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// `n` numbers in [0, 1).
    pub(super) fn units(&mut self, n: usize) -> Vec<f32> {
        self.drawn += 1;
        let base = self.drawn << 32;
        (0..n as u64).map(|i| rng::uniform(self.seed, stream::CHECK, base | i)).collect()
    }

    /// `n` numbers in [-1, 1).
    pub(super) fn signed(&mut self, n: usize) -> Vec<f32> {
        self.units(n).into_iter().map(|u| 2.0 * u - 1.0).collect()
    }

    /// `n` numbers below `limit`.
    pub(super) fn indices(&mut self, n: usize, limit: usize) -> Vec<u32> {
        self.units(n)
            .into_iter()
            .map(|u| ((f64::from(u) * limit as f64) as u32).min(limit as u32 - 1))
            .collect()
    }

    /// `rows` rows of `cols` values; `huge` is the size of [`Data::Huge`].
    pub(super) fn values(&mut self, data: Data, rows: usize, cols: usize, huge: f32) -> Vec<f32> {
        let signed = self.signed(rows * cols);
        let by_row = |f: &dyn Fn(usize) -> f32| -> Vec<f32> { (0..rows * cols).map(f).collect() };
        match data {
            Data::Random => signed,
            Data::EqualRows => by_row(&|i| signed[i / cols * cols]),
            Data::Ties => by_row(&|i| (signed[i] * 3.0).trunc() * 0.5),
            Data::WideGaps => {
                let size = self.signed(rows * cols);
                by_row(&|i| signed[i].signum() * 10_f32.powf(4.0 * size[i]))
            }
            Data::Subnormal => by_row(&|i| signed[i] * f32::MIN_POSITIVE),
            Data::Huge => by_row(&|i| signed[i] * huge),
            Data::Tiny => by_row(&|i| signed[i] * 1e-15),
            Data::Positive => by_row(&|i| signed[i].abs()),
        }
    }

    /// `rows` rows of `k` logits.
    pub(super) fn logits(&mut self, data: Data, rows: usize, k: usize) -> Vec<f32> {
        let mut z = self.values(data, rows, k, 1.0);
        let scale = |z: &mut Vec<f32>, f: &dyn Fn(f32) -> f32| z.iter_mut().for_each(|x| *x = f(*x));
        match data {
            Data::Random | Data::EqualRows => scale(&mut z, &|x| 6.0 * x),
            Data::WideGaps => z = self.signed(rows * k).into_iter().map(|x| 5e3 * x).collect(),
            Data::Huge => scale(&mut z, &|x| 1e6 + 6.0 * x),
            Data::Ties => {
                let places = self.indices(2 * rows, k);
                for (row, places) in z.chunks_exact_mut(k).zip(places.chunks_exact(2)) {
                    places.iter().for_each(|p| row[*p as usize] = 7.0);
                }
            }
            Data::Subnormal | Data::Tiny | Data::Positive => {}
        }
        z
    }
}
