//! What the tests of this room share: seeded numbers, and the derivative by central differences.

use super::Matrix;

/// Uniform numbers in [-1, 1), by splitmix64: the same on every machine.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// `n` numbers in [-size, size), each exact in f32, as a device would receive them.
    pub(super) fn row(&mut self, n: usize, size: f64) -> Vec<f64> {
        (0..n).map(|_| f64::from((self.next() * size) as f32)).collect()
    }

    pub(super) fn matrix(&mut self, rows: usize, cols: usize, size: f64) -> Matrix {
        Matrix::new(rows, cols, self.row(rows * cols, size))
    }

    pub(super) fn label(&mut self, classes: usize) -> usize {
        ((self.next() + 1.0) / 2.0 * classes as f64) as usize
    }
}

/// Panics unless `gradient` is the derivative of `f` at `x`, by central differences.
pub(super) fn assert_gradient(x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64, what: &str) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    let size = gradient.iter().fold(1.0_f64, |m, g| m.max(g.abs()));
    for i in 0..x.len() {
        let h = 1e-5 * x[i].abs().max(1.0);
        let mut moved = x.to_vec();
        moved[i] = x[i] + h;
        let up = f(&moved);
        moved[i] = x[i] - h;
        let down = f(&moved);
        let expected = (up - down) / (2.0 * h);
        let diff = (gradient[i] - expected).abs();
        assert!(
            diff <= 1e-7 * size,
            "{what}: element {i}: gradient {} but central difference {expected}",
            gradient[i]
        );
    }
}

/// Panics unless the two are within `tolerance` of each other.
pub(super) fn assert_close(got: f64, expected: f64, tolerance: f64) {
    let diff = (got - expected).abs();
    assert!(diff <= tolerance, "got {got}, expected {expected}");
}
