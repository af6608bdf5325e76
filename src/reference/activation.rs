//! Activations of the hidden layers, and their derivatives.

use super::{Bounded, Matrix, Rounded, rounding::U};

/// The activation of the hidden layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// y = z
    Identity,
    /// y = max(z, 0)
    Relu,
    /// y = tanh z
    Tanh,
    /// The tanh form: y = z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) (Hendrycks, Gimpel 2016).
    Gelu,
}

const CUBIC: f64 = 0.044715;

impl Activation {
    /// y = f(z).
    pub fn forward(self, z: f64) -> f64 {
        self.forward_rounded(Rounded::exact(z)).value
    }

    /// f'(z). ReLU's is 0 at 0.
    pub fn derivative(self, z: f64) -> f64 {
        self.derivative_rounded(Rounded::exact(z)).value
    }

    /// f'(z) from y = f(z), for a backward pass that kept only y; GELU is not monotone and has none.
    pub fn derivative_from_output(self, y: f64) -> Option<f64> {
        match self {
            Self::Identity => Some(1.0),
            Self::Relu => Some(if y > 0.0 { 1.0 } else { 0.0 }),
            Self::Tanh => Some(1.0 - y * y),
            Self::Gelu => None,
        }
    }

    /// y = f(z) with its roundings.
    pub fn forward_rounded(self, z: Rounded) -> Rounded {
        let (half, one) = (Rounded::exact(0.5), Rounded::exact(1.0));
        match self {
            Self::Identity => z,
            // 1-Lipschitz: an inexact z just below 0 may still come out positive.
            Self::Relu if z.value + z.error * U <= 0.0 => Rounded::exact(0.0),
            Self::Relu => Rounded { value: z.value.max(0.0), ..z },
            Self::Tanh => z.tanh(),
            Self::Gelu => half * z * (one + gelu_argument(z).tanh()),
        }
    }

    /// f'(z) with its roundings, for a z that decides ReLU's side.
    pub fn derivative_rounded(self, z: Rounded) -> Rounded {
        let (half, one) = (Rounded::exact(0.5), Rounded::exact(1.0));
        match self {
            Self::Identity => one,
            Self::Relu => Rounded::exact(if z.value > 0.0 { 1.0 } else { 0.0 }),
            Self::Tanh => {
                let y = z.tanh();
                one - y * y
            }
            Self::Gelu => {
                let t = gelu_argument(z).tanh();
                let slope = sqrt_2_over_pi() * (one + Rounded::parameter(3.0 * CUBIC) * z * z);
                // Past 6 the second term is nothing, but a t that is one rounding short of 1 would be
                // multiplied by z^3 / 20: there a device has to take the limit or this form.
                let sech_squared = match z.value.abs() <= 6.0 {
                    true => one - t * t,
                    false => {
                        let e = (Rounded::exact(-2.0) * gelu_argument(z).abs()).exp();
                        Rounded::exact(4.0) * e / ((one + e) * (one + e))
                    }
                };
                half * (one + t) + half * z * sech_squared * slope
            }
        }
    }

    /// Y = f(Z) for a Z as the device received it; n = 1.
    pub fn forward_matrix(self, z: &Matrix) -> Bounded {
        let map = |z: &f64| self.forward_rounded(Rounded::exact(*z));
        let y: Vec<Rounded> = z.data.iter().map(map).collect();
        Bounded::from_rounded(z.rows, z.cols, &y)
    }

    /// Y = f(Z) for a Z that the device computed itself (a fused epilogue), where Z alone would be
    /// checked with `n_of_z`; n = 1.
    pub fn forward_bounded(self, z: &Bounded, n_of_z: usize) -> Bounded {
        let z_rounded = z.to_rounded(n_of_z);
        let y: Vec<Rounded> = z_rounded.iter().map(|z| self.forward_rounded(*z)).collect();
        Bounded::from_rounded(z.value.rows, z.value.cols, &y)
    }
}

fn sqrt_2_over_pi() -> Rounded {
    Rounded::parameter((2.0 / std::f64::consts::PI).sqrt())
}

fn gelu_argument(z: Rounded) -> Rounded {
    sqrt_2_over_pi() * (z + Rounded::parameter(CUBIC) * z * z * z)
}

#[cfg(test)]
mod tests {
    use super::super::rounding::hostile;
    use super::super::testing::{Random, assert_close, assert_gradient};
    use super::super::worst;
    use super::*;

    const ALL: [Activation; 4] = [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Gelu];

    #[test]
    fn derivatives_match_central_differences() {
        for f in ALL {
            for z in Random(6).row(50, 5.0) {
                let what = format!("{f:?} at {z}");
                assert_gradient(&[z], &[f.derivative(z)], |x| f.forward(x[0]), &what);
                if let Some(d) = f.derivative_from_output(f.forward(z)) {
                    assert_close(d, f.derivative(z), 1e-15);
                }
            }
        }
    }

    #[test]
    fn known_values() {
        assert_close(Activation::Gelu.forward(1.0), 0.841_191_990_608_3, 1e-12);
        assert_close(Activation::Gelu.forward(-1e4), 0.0, 0.0);
        assert_close(Activation::Gelu.derivative(1e4), 1.0, 0.0);
        assert_close(Activation::Gelu.derivative(-1e4), 0.0, 0.0);
        assert_close(Activation::Relu.derivative(0.0), 0.0, 0.0);
    }

    #[test]
    fn f32_forward_is_within_the_bound_and_a_wrong_one_is_not() {
        let z = Random(7).matrix(20, 20, 6.0);
        let device: Vec<f32> = z.to_f32().iter().map(|z| z.tanh()).collect();
        let expected = Activation::Tanh.forward_matrix(&z);
        assert!(worst(&device, &expected, 1).passes());
        let gelu = |z: f32, c: f32| 0.5 * z * (1.0 + (0.797_884_6 * (z + c * z * z * z)).tanh());
        let expected = Activation::Gelu.forward_matrix(&z);
        let right: Vec<f32> = z.to_f32().iter().map(|z| gelu(*z, 0.044_715)).collect();
        let wrong: Vec<f32> = z.to_f32().iter().map(|z| gelu(*z, 0.044)).collect();
        assert!(worst(&right, &expected, 1).passes());
        assert!(!worst(&wrong, &expected, 1).passes());
    }

    #[test]
    fn bounds_hold_on_a_hostile_device_and_stay_small() {
        let mut z = Random(11).row(200, 8.0);
        z.extend([0.0, 30.0, -30.0, 1e4, -1e4]);
        for f in ALL {
            for z in z.iter().map(|z| Rounded::exact(*z)) {
                for g in [Activation::forward_rounded, Activation::derivative_rounded] {
                    let expected = g(f, z);
                    let device = hostile::run(z.value.to_bits(), || g(f, z));
                    let ratio = (device.value - expected.value).abs() / U;
                    assert!(ratio <= expected.error, "{f:?} at {z:?}: {device:?}");
                    let size = 1.0 + z.value.abs();
                    assert!(expected.error <= 300.0 * size, "{f:?}: {expected:?}");
                }
            }
        }
    }

    #[test]
    fn an_inexact_relu_input_passes_its_error_on() {
        let near = Rounded { value: -1e-9, error: 1.0 };
        assert_close(Activation::Relu.forward_rounded(near).error, 1.0, 0.0);
        let far = Rounded { value: -1.0, ..near };
        assert_close(Activation::Relu.forward_rounded(far).error, 0.0, 0.0);
    }
}
