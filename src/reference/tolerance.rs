//! The tolerance policy: a device's result passes if and only if, for every element,
//!
//! ```text
//! |device - value| <= gamma(n) * scale + TINY,   gamma(n) = n u / (1 - n u),   u = 2^-23
//! ```
//!
//! Nothing is tuned by looking at what a device returns: n and scale come from the operation
//! (Higham, section 3.1: a dot product of length K, in any order, is within gamma(K) * sum |a*b|).

use super::{Bounded, rounding::U};

/// The smallest normal f32. Devices may flush anything below it to zero, also where the scale is zero.
pub const TINY: f64 = f32::MIN_POSITIVE as f64;

/// n u / (1 - n u): the relative error of n roundings in a row.
pub fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    assert!(nu < 1.0, "{n} roundings leave no digits in f32");
    nu / (1.0 - nu)
}

/// The element of a result that is worst against its bound.
#[derive(Debug, Clone, Copy)]
pub struct Worst {
    /// |got - expected| over the allowed error: the result passes while this is at most 1.
    pub ratio: f64,
    /// Where, in row-major order.
    pub index: usize,
    /// What the device returned there.
    pub got: f32,
    /// What the reference returned there.
    pub expected: f64,
}

impl Worst {
    /// Whether every element is within its bound.
    pub fn passes(&self) -> bool {
        self.ratio <= 1.0
    }
}

/// The worst element of `device` against `expected`; see [`Bounded`] for n.
/// A NaN or an infinity from the device has the ratio infinity.
pub fn worst(device: &[f32], expected: &Bounded, n: usize) -> Worst {
    let (value, scale) = (&expected.value.data, &expected.scale.data);
    assert_eq!(device.len(), value.len(), "elements of a device's result");
    let gamma = gamma(n);
    let mut worst = Worst { ratio: -1.0, index: 0, got: 0.0, expected: 0.0 };
    for (index, got) in device.iter().copied().enumerate() {
        assert!(
            value[index].is_finite() && scale[index].is_finite(),
            "the reference itself is not finite at element {index}"
        );
        let allowed = gamma * scale[index] + TINY;
        let ratio =
            if got.is_finite() { (f64::from(got) - value[index]).abs() / allowed } else { f64::INFINITY };
        if ratio > worst.ratio {
            worst = Worst { ratio, index, got, expected: value[index] };
        }
    }
    assert!(worst.ratio >= 0.0, "an empty result proves nothing");
    worst
}

/// The ratio of the [`worst`] element: it passes if `worst_ratio(..) <= 1.0`.
pub fn worst_ratio(device: &[f32], expected: &Bounded, n: usize) -> f64 {
    worst(device, expected, n).ratio
}

/// Planted errors: each must be caught, and the honest f32 result must not be.
#[cfg(test)]
mod tests {
    use super::super::linalg::matmul;
    use super::super::testing::Random;
    use super::super::{Head, Matrix, SoftLoss};
    use super::*;

    const K: usize = 65;

    fn operands() -> (Matrix, Matrix) {
        let mut random = Random(3);
        (random.matrix(K, K, 1.0), random.matrix(K, K, 1.0))
    }

    /// An f32 matmul as a device would do it, over the first `depth` of the inner dimension.
    fn device_matmul(a: &Matrix, b: &Matrix, depth: usize) -> Vec<f32> {
        let (a32, b32) = (a.to_f32(), b.to_f32());
        let mut c = vec![0.0_f32; a.rows * b.cols];
        for i in 0..a.rows {
            for j in 0..b.cols {
                for k in 0..depth {
                    c[i * b.cols + j] += a32[i * a.cols + k] * b32[k * b.cols + j];
                }
            }
        }
        c
    }

    #[test]
    fn an_honest_result_passes() {
        let (a, b) = operands();
        let ratio = worst_ratio(&device_matmul(&a, &b, K), &matmul(&a, &b, false, false), K);
        assert!(ratio > 0.0 && ratio < 0.5, "ratio {ratio}");
    }

    #[test]
    fn a_transposed_operand_is_caught() {
        let (a, b) = operands();
        let device = device_matmul(&a, &b.transposed(), K);
        assert!(!worst(&device, &matmul(&a, &b, false, false), K).passes());
    }

    #[test]
    fn a_nan_is_caught_and_located() {
        let (a, b) = operands();
        for planted in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut device = device_matmul(&a, &b, K);
            device[77] = planted;
            let worst = worst(&device, &matmul(&a, &b, false, false), K);
            assert!(!worst.passes());
            assert_eq!(worst.index, 77);
            assert!(worst.ratio.is_infinite());
        }
    }

    #[test]
    fn an_unwritten_element_is_caught() {
        let (a, b) = operands();
        // Zero too: a result that was never written may look like the start of an accumulation.
        for poison in [-1.234e5, 0.0] {
            let mut device = device_matmul(&a, &b, K);
            device[K * K - 1] = poison;
            let worst = worst(&device, &matmul(&a, &b, false, false), K);
            assert!(!worst.passes());
            assert_eq!(worst.index, K * K - 1);
        }
    }

    #[test]
    fn an_off_by_one_in_the_last_tile_is_caught() {
        let (a, b) = operands();
        let device = device_matmul(&a, &b, K - 1);
        assert!(!worst(&device, &matmul(&a, &b, false, false), K).passes());
    }

    #[test]
    fn a_shifted_row_in_the_last_tile_is_caught() {
        let (a, b) = operands();
        let mut device = device_matmul(&a, &b, K);
        device.copy_within((K - 2) * K..(K - 1) * K, (K - 1) * K);
        assert!(!worst(&device, &matmul(&a, &b, false, false), K).passes());
    }

    /// d_z of a soft loss alone, as the device's f32, scaled by a planted `factor`; and the reference.
    fn head(classes: usize, temperature: f64, factor: f64) -> Worst {
        let mut random = Random(4);
        let (z, v) = (random.matrix(7, classes, 6.0), random.matrix(7, classes, 6.0));
        let head = Head {
            hard_weight: 0.0,
            soft_weight: 1.0,
            temperature,
            label_smoothing: 0.0,
            soft_loss: SoftLoss::ForwardKl,
            standardise: false,
        };
        let expected = head.evaluate(&z, Some(&v), &[None; 7]).d_z;
        worst(&expected.value.map(|x| x * factor).to_f32(), &expected, 1)
    }

    #[test]
    fn a_missing_temperature_is_caught() {
        assert!(head(10, 2.0, 1.0).passes());
        assert!(!head(10, 2.0, 1.0 / 2.0).passes());
        assert!(!head(10, 1.01, 1.0 / 1.01).passes());
    }

    #[test]
    fn a_factor_of_the_classes_is_caught() {
        assert!(!head(10, 2.0, 1.0 / 10.0).passes());
        assert!(!head(1000, 2.0, 1.0 / 1000.0).passes());
        // Padding counted as a class.
        assert!(!head(10, 2.0, 10.0 / 12.0).passes());
    }

    #[test]
    fn subnormals_may_be_flushed_and_zero_is_met() {
        let expected = Bounded::exact(Matrix::new(1, 2, vec![1e-39, 0.0]));
        assert!(worst(&[0.0, 0.0], &expected, 1).passes());
        assert!(!worst(&[0.0, 1e-30], &expected, 1).passes());
    }

    #[test]
    #[should_panic(expected = "the reference itself")]
    fn a_broken_reference_is_not_a_pass() {
        let expected = Bounded::exact(Matrix::new(1, 1, vec![f64::NAN]));
        worst(&[1.0], &expected, 1);
    }

    #[test]
    #[should_panic(expected = "proves nothing")]
    fn an_empty_result_is_not_a_pass() {
        worst(&[], &Bounded::exact(Matrix::zeros(0, 3)), 1);
    }
}
