//! Running error analysis: how far an f32 device may be from an exact result.
//!
//! A [`Rounded`] is an f64 value and a first-order bound of the device's error in units of u = 2^-23,
//! pushed through each operation by its derivative plus that operation's own rounding
//! (Higham, Accuracy and Stability of Numerical Algorithms, section 3.3). So a loss is written once,
//! as its formula, and its tolerance follows from it.
//!
//! What an operation itself may add, in units of u, from the accuracy table of the WGSL
//! specification, section 15.7.4 (one ULP of y is at most u*|y|):
//!
//! | operation | specified | counted |
//! |---|---|---|
//! | x + y, x - y, x * y | correctly rounded, either way | \|r\| |
//! | x / y | 2.5 ULP | 2.5 \|r\| |
//! | exp(x) | 3 + 2\|x\| ULP | (10 + 2\|x\|) r: 9.6 ULP were measured on a software driver |
//! | log(x) | 3 ULP; 2^-21 absolute on [0.5, 2] | 4 + 4 \|r\|: 3.5 ULP were measured |
//! | sqrt(x) | as 1 / inverseSqrt(x): 2 + 2.5 ULP | 5 r |
//! | tanh(x) | 1e-5 absolute, or as sinh / cosh | 84 (1 - r^2) + 6 \|r\|: see `tanh` |
//!
//! Each also adds [`FLUSH`]: a device may flush a result below the normal range to zero.

use std::iter::Sum;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// The unit: the distance from 1 to the next f32, 2^-23. Twice the unit roundoff of round-to-nearest,
/// because WGSL leaves the direction of rounding to the device.
pub const U: f64 = 1.0 / (1 << 23) as f64;

/// The smallest normal f32, 2^-126, in units of u.
pub const FLUSH: f64 = f32::MIN_POSITIVE as f64 / U;

/// What a device loses of `input` if it reads a subnormal as zero, as WGSL lets it.
pub fn flushed(input: f64) -> f64 {
    if input.abs() < f64::from(f32::MIN_POSITIVE) { input.abs() } else { 0.0 }
}

/// A value and a bound of the device's error in it, in units of u.
#[derive(Debug, Clone, Copy)]
pub struct Rounded {
    /// The exact result.
    pub value: f64,
    /// |device - value| <= error * u, to first order.
    pub error: f64,
}

impl Rounded {
    /// An input as the device received it, or a small constant: no error, but a subnormal may be read as 0.
    pub fn exact(value: f64) -> Self {
        Self { value, error: flushed(value) / U }
    }

    /// A scalar that the host rounds to f32, such as a temperature.
    pub fn parameter(value: f64) -> Self {
        Self::after(value, 0.0, 1.0)
    }

    /// A result with what it inherits, and the ULPs its own operation adds.
    fn after(value: f64, inherited: f64, ulps: f64) -> Self {
        let own = ulps * value.abs() + FLUSH;
        let error = inherited + own;
        #[cfg(test)]
        let value = hostile::disturbed(value, own);
        Self { value, error }
    }

    /// e^x.
    pub fn exp(self) -> Self {
        let y = self.value.exp();
        Self::after(y, y * self.error, 10.0 + 2.0 * self.value.abs())
    }

    /// Natural logarithm of x > 0.
    pub fn log(self) -> Self {
        let y = self.value.ln();
        Self::after(y, self.error / self.value + 4.0, 4.0)
    }

    /// Square root of x >= 0. Where x is so small that its error exceeds it the derivative says
    /// nothing, so the bound is the smaller of d/sqrt(x) and sqrt(d).
    pub fn sqrt(self) -> Self {
        let y = self.value.sqrt();
        let near_zero = (self.error / U).sqrt();
        let inherited = if y > 0.0 { near_zero.min(self.error / y) } else { near_zero };
        Self::after(y, inherited, 5.0)
    }

    /// Hyperbolic tangent. The specified 1e-5 = 84 u is needed near 0, where sinh / cosh cancels;
    /// towards saturation the exponentials' errors fade as 1 - y^2 and a few ULP of y remain.
    pub fn tanh(self) -> Self {
        let y = self.value.tanh();
        let slope = 1.0 - y * y;
        Self::after(y, slope * (self.error + 84.0), 6.0)
    }

    /// The larger of two; exact in itself.
    pub fn max(self, other: Self) -> Self {
        Self { value: self.value.max(other.value), error: self.error.max(other.error) }
    }

    /// |x|; exact in itself.
    pub fn abs(self) -> Self {
        Self { value: self.value.abs(), error: self.error }
    }
}

impl Add for Rounded {
    type Output = Self;
    fn add(self, b: Self) -> Self {
        Self::after(self.value + b.value, self.error + b.error, 1.0)
    }
}

impl Sub for Rounded {
    type Output = Self;
    fn sub(self, b: Self) -> Self {
        Self::after(self.value - b.value, self.error + b.error, 1.0)
    }
}

impl Mul for Rounded {
    type Output = Self;
    fn mul(self, b: Self) -> Self {
        // The last term is of second order; it is all that is left where both values are 0.
        let both = self.error * b.error * U;
        let inherited = self.value.abs() * b.error + b.value.abs() * self.error + both;
        Self::after(self.value * b.value, inherited, 1.0)
    }
}

impl Div for Rounded {
    type Output = Self;
    fn div(self, b: Self) -> Self {
        let r = self.value / b.value;
        let inherited = (self.error + r.abs() * b.error) / b.value.abs();
        Self::after(r, inherited, 2.5)
    }
}

impl Neg for Rounded {
    type Output = Self;
    fn neg(self) -> Self {
        Self { value: -self.value, error: self.error }
    }
}

/// A sum in any order: each addition may round what has been summed so far, which is at most sum |x|.
impl Sum for Rounded {
    fn sum<I: Iterator<Item = Self>>(terms: I) -> Self {
        let (mut value, mut error, mut size, mut n) = (0.0, 0.0, 0.0, 0);
        for x in terms {
            value += x.value;
            error += x.error;
            size += x.value.abs();
            n += 1;
        }
        let own = additions(n) * size;
        let error = error + own;
        #[cfg(test)]
        let value = hostile::disturbed(value, own);
        Self { value, error }
    }
}

/// How many additions a term of a sum of n goes through at most: n for a serial loop. No kernel gives
/// a row of more than 64 elements to fewer than 32 lanes, so from there on it grows with n / 32:
/// n itself would let a forgotten tile of K = 152,000 classes, or a 1 % wrong T at K = 1000, pass.
fn additions(n: usize) -> f64 {
    (n.min(64) + n.saturating_sub(64) / 32) as f64
}

/// Σ a_i b_i.
pub fn dot(a: &[Rounded], b: &[Rounded]) -> Rounded {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| *a * *b).sum()
}

/// A row of inputs.
pub fn exact_row(row: &[f64]) -> Vec<Rounded> {
    row.iter().map(|x| Rounded::exact(*x)).collect()
}

/// The worst device that still conforms: while it runs, every operation on this thread errs by a
/// random part of what it is allowed. So the tests can ask whether a bound holds for a whole formula.
#[cfg(test)]
pub(super) mod hostile {
    use super::super::testing::Random;
    use std::cell::RefCell;

    thread_local! {
        static DEVICE: RefCell<Option<Random>> = const { RefCell::new(None) };
    }

    pub(in super::super) fn run<T>(seed: u64, f: impl FnOnce() -> T) -> T {
        DEVICE.set(Some(Random(seed)));
        let result = f();
        DEVICE.set(None);
        result
    }

    pub(super) fn disturbed(value: f64, allowed: f64) -> f64 {
        DEVICE.with_borrow_mut(|device| match device {
            Some(random) => value + random.next() * allowed * super::U,
            None => value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close};
    use super::*;

    fn allowed(got: f32, r: Rounded) -> bool {
        (f64::from(got) - r.value).abs() <= r.error * U
    }

    #[test]
    fn the_unit_is_f32_epsilon() {
        assert_close(U, f64::from(f32::EPSILON), 0.0);
        assert_close(FLUSH, 2.0_f64.powi(-103), 0.0);
    }

    #[test]
    fn f32_arithmetic_stays_within_the_bound() {
        let mut random = Random(1);
        for _ in 0..2000 {
            let x = random.row(2, 8.0);
            let (a, b) = (x[0] as f32, x[1] as f32 + 20.0);
            let (ra, rb) = (Rounded::exact(x[0]), Rounded::exact(x[1] + 20.0));
            let rb = Rounded { error: rb.value.abs(), ..rb };
            assert!(allowed((a * b - a) / b, (ra * rb - ra) / rb));
            assert!(allowed((a * a + b).ln(), (ra * ra + rb).log()));
            assert!(allowed((a - b).exp(), (ra - rb).exp()));
            assert!(allowed((a * a).sqrt(), (ra * ra).sqrt()));
            assert!(allowed((a / b).tanh(), (ra / rb).tanh()));
        }
    }

    #[test]
    fn a_bound_is_a_few_roundings_wide() {
        let x = Rounded::exact(3.0);
        assert_close((x * x - x).error, 9.0 + 6.0, 1e-20);
        assert_close((x / x).error, 2.5, 1e-20);
        assert_close(Rounded::exact(0.0).exp().error, 10.0, 1e-20);
        assert_close(Rounded::exact(1.0).log().error, 4.0, 1e-20);
    }

    #[test]
    fn a_serial_f32_sum_stays_within_the_bound() {
        let row = Random(2).row(1000, 1.0);
        let serial: f32 = row.iter().map(|x| *x as f32).sum();
        assert!(allowed(serial, exact_row(&row).into_iter().sum()));
    }
}
