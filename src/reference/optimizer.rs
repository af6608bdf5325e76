//! SGD and Adam, one parameter at a time, in the conventions of PyTorch and of Keras.

use super::rounding::{U, dot, exact_row};
use super::{Bounded, Matrix, Rounded};

/// Where the two frameworks write the same method differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convention {
    /// SGD: v = mu v + g, p -= lr v (Nesterov: lr (g + mu v)).
    /// Adam: p -= lr m_hat / (sqrt(v_hat) + eps).
    PyTorch,
    /// SGD: v = mu v - lr g, p += v (Nesterov: mu v - lr g); differs once lr changes.
    /// Adam: p -= lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps): a larger eps early on.
    Keras,
}

/// An update rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Stochastic gradient descent; momentum 0 is the plain one.
    Sgd {
        /// mu.
        momentum: f64,
        /// Look ahead along the velocity.
        nesterov: bool,
        /// L2: g += wd p.
        weight_decay: f64,
        /// Whose velocity.
        convention: Convention,
    },
    /// Adam (Kingma, Ba 2015), AdamW (Loshchilov, Hutter 2019) where `decoupled`.
    Adam {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Keeps the division away from 0.
        epsilon: f64,
        /// wd.
        weight_decay: f64,
        /// p -= lr wd p before the step (AdamW) instead of g += wd p.
        decoupled: bool,
        /// Whose epsilon.
        convention: Convention,
    },
}

/// A parameter and its two state values; SGD's velocity is `first`.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// The parameter.
    pub p: Rounded,
    /// First moment or velocity.
    pub first: Rounded,
    /// Second moment.
    pub second: Rounded,
}

impl Slot {
    /// What a device holds before the step.
    pub fn exact(p: f64, first: f64, second: f64) -> Self {
        Self { p: Rounded::exact(p), first: Rounded::exact(first), second: Rounded::exact(second) }
    }
}

impl Rule {
    /// One step of one parameter with gradient g. `step` counts from 1.
    ///
    /// Scalars such as 1 - b2 are taken as the host's f64 rounded to f32. A kernel that computes
    /// 1 - b2 from an f32 b2 = 0.999 is off by 250 u in the second moment: give the reference the
    /// f32 value of b2 then, for which the subtraction is exact.
    pub fn update(&self, step: u64, lr: f64, slot: Slot, g: Rounded) -> Slot {
        assert!(step >= 1, "steps count from 1");
        let scalar = Rounded::parameter;
        let Slot { p, first, second } = slot;
        match *self {
            Self::Sgd { momentum, nesterov, weight_decay, convention } => {
                let g = decayed(g, p, weight_decay);
                let (mu, lr) = (scalar(momentum), scalar(lr));
                let (first, p) = match convention {
                    Convention::PyTorch => {
                        let first = mu * first + g;
                        let move_by = if nesterov { g + mu * first } else { first };
                        (first, p - lr * move_by)
                    }
                    Convention::Keras => {
                        let first = mu * first - lr * g;
                        let move_by = if nesterov { mu * first - lr * g } else { first };
                        (first, p + move_by)
                    }
                };
                Slot { p, first, second }
            }
            Self::Adam { beta1, beta2, epsilon, weight_decay, decoupled, convention } => {
                let (p, g) = match decoupled {
                    true => (p - scalar(lr * weight_decay) * p, g),
                    false => (p, decayed(g, p, weight_decay)),
                };
                let first = scalar(beta1) * first + scalar(1.0 - beta1) * g;
                let second = scalar(beta2) * second + scalar(1.0 - beta2) * g * g;
                let t = step as f64;
                let (c1, c2) = (1.0 - beta1.powf(t), 1.0 - beta2.powf(t));
                let eps = scalar(epsilon);
                let move_by = match convention {
                    Convention::PyTorch => {
                        let m_hat = first / scalar(c1);
                        let v_hat = second / scalar(c2);
                        scalar(lr) * m_hat / (v_hat.sqrt() + eps)
                    }
                    Convention::Keras => scalar(lr * c2.sqrt() / c1) * first / (second.sqrt() + eps),
                };
                Slot { p: p - move_by, first, second }
            }
        }
    }
}

impl Rule {
    /// [`Rule::update`] of a whole tensor, as a device does it: parameter, first and second moment; n = 1.
    pub fn update_matrix(
        &self,
        step: u64,
        lr: f64,
        [p, first, second]: [&Matrix; 3],
        g: &Matrix,
    ) -> [Bounded; 3] {
        let update = |i: usize| {
            let slot = Slot::exact(p.data[i], first.data[i], second.data[i]);
            self.update(step, lr, slot, Rounded::exact(g.data[i]))
        };
        let slots: Vec<Slot> = (0..p.data.len()).map(update).collect();
        [|s: &Slot| s.p, |s: &Slot| s.first, |s: &Slot| s.second].map(|part| {
            let elements: Vec<Rounded> = slots.iter().map(part).collect();
            Bounded::from_rounded(p.rows, p.cols, &elements)
        })
    }
}

/// A gradient's norm, and what clipping to `clip` multiplies it with: min(1, clip / norm).
pub fn clipped(gradient: &[f64], clip: f64) -> [Rounded; 2] {
    let row = exact_row(gradient);
    let norm = dot(&row, &row).sqrt();
    // A device whose norm is not above the limit leaves the gradient alone.
    let scale = match norm.value + norm.error * U <= clip {
        true => Rounded::exact(1.0),
        false => {
            let ratio = Rounded::parameter(clip) / norm;
            Rounded { value: ratio.value.min(1.0), ..ratio }
        }
    };
    [norm, scale]
}

/// A unit's incoming weights, shortened to `limit` where they are longer (Srivastava et al. 2014).
pub fn max_norm(row: &[f64], limit: f64) -> Vec<Rounded> {
    let [_, scale] = clipped(row, limit);
    exact_row(row).into_iter().map(|w| w * scale).collect()
}

fn decayed(g: Rounded, p: Rounded, weight_decay: f64) -> Rounded {
    if weight_decay > 0.0 { g + Rounded::parameter(weight_decay) * p } else { g }
}

/// A rule and the state of every parameter it moves.
#[derive(Debug, Clone)]
pub struct Optimizer {
    /// The rule.
    pub rule: Rule,
    /// Steps taken.
    pub steps: u64,
    state: Vec<Vec<[f64; 2]>>,
}

impl Optimizer {
    /// State starts at zero and takes its shape from the first step.
    pub fn new(rule: Rule) -> Self {
        Self { rule, steps: 0, state: Vec::new() }
    }

    /// Moves `parameters` along `gradients`, tensor by tensor.
    pub fn step(&mut self, lr: f64, parameters: &mut [&mut [f64]], gradients: &[&[f64]]) {
        assert_eq!(parameters.len(), gradients.len(), "tensors and gradients");
        self.steps += 1;
        if self.steps == 1 {
            self.state = gradients.iter().map(|g| vec![[0.0; 2]; g.len()]).collect();
        }
        for ((tensor, gradient), state) in parameters.iter_mut().zip(gradients).zip(&mut self.state) {
            assert_eq!(tensor.len(), gradient.len(), "elements and gradients");
            for ((p, g), s) in tensor.iter_mut().zip(*gradient).zip(state) {
                let slot = Slot::exact(*p, s[0], s[1]);
                let new = self.rule.update(self.steps, lr, slot, Rounded::exact(*g));
                *p = new.p.value;
                *s = [new.first.value, new.second.value];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rounding::hostile;
    use super::super::testing::{Random, assert_close};
    use super::super::worst_ratio;
    use super::*;

    /// p after each of the gradients, from p = 1.
    fn run(rule: Rule, rates: &[f64], gradients: &[f64]) -> Vec<f64> {
        let mut optimizer = Optimizer::new(rule);
        let mut p = [1.0];
        let steps = rates.iter().zip(gradients);
        steps
            .map(|(lr, g)| {
                optimizer.step(*lr, &mut [&mut p], &[&[*g]]);
                p[0]
            })
            .collect()
    }

    fn sgd(momentum: f64, nesterov: bool, weight_decay: f64, convention: Convention) -> Rule {
        Rule::Sgd { momentum, nesterov, weight_decay, convention }
    }

    fn adam(weight_decay: f64, decoupled: bool, epsilon: f64, convention: Convention) -> Rule {
        Rule::Adam { beta1: 0.9, beta2: 0.999, epsilon, weight_decay, decoupled, convention }
    }

    fn assert_all_close(got: &[f64], expected: &[f64]) {
        for (got, expected) in got.iter().zip(expected) {
            assert_close(*got, *expected, 1e-12);
        }
    }

    #[test]
    fn plain_sgd_by_hand() {
        for convention in [Convention::PyTorch, Convention::Keras] {
            let rule = sgd(0.0, false, 0.0, convention);
            assert_all_close(&run(rule, &[0.1, 0.1], &[2.0, -1.0]), &[0.8, 0.9]);
        }
        // g + wd p = 2 + 0.5
        let decay = sgd(0.0, false, 0.5, Convention::PyTorch);
        assert_all_close(&run(decay, &[0.1], &[2.0]), &[0.75]);
    }

    #[test]
    fn momentum_and_nesterov_by_hand() {
        for convention in [Convention::PyTorch, Convention::Keras] {
            // v: 2, 2.8; p: 1 - .2, - .28
            let momentum = run(sgd(0.9, false, 0.0, convention), &[0.1; 2], &[2.0, 1.0]);
            assert_all_close(&momentum, &[0.8, 0.52]);
            // g + mu v: 2 + 1.8, 1 + 2.52
            let nesterov = run(sgd(0.9, true, 0.0, convention), &[0.1; 2], &[2.0, 1.0]);
            assert_all_close(&nesterov, &[0.62, 0.268]);
        }
    }

    #[test]
    fn the_velocities_differ_once_the_rate_changes() {
        let steps = |c| run(sgd(0.9, false, 0.0, c), &[0.1, 0.01], &[2.0, 1.0]);
        // PyTorch: 0.8 - 0.01 * 2.8; Keras: v = 0.9 * -0.2 - 0.01
        assert_all_close(&steps(Convention::PyTorch), &[0.8, 0.772]);
        assert_all_close(&steps(Convention::Keras), &[0.8, 0.61]);
    }

    #[test]
    fn adam_by_hand() {
        // Step 1: m_hat = g and v_hat = g^2 whatever g is.
        let p = run(adam(0.0, false, 0.0, Convention::PyTorch), &[0.1], &[5.0]);
        assert_all_close(&p, &[0.9]);
        // Step 2 with g = 1, -1: m = 0.09 - 0.1, v = 0.000999 + 0.001.
        let p = run(adam(0.0, false, 1e-8, Convention::PyTorch), &[0.1; 2], &[1.0, -1.0]);
        let m_hat: f64 = (0.09 - 0.1) / (1.0 - 0.81);
        let v_hat: f64 = (0.000_999 + 0.001) / (1.0 - 0.998_001);
        let first = 1.0 - 0.1 / (1.0 + 1e-8);
        assert_all_close(&p, &[first, first - 0.1 * m_hat / (v_hat.sqrt() + 1e-8)]);
    }

    #[test]
    fn the_epsilons_differ() {
        // At step 1: PyTorch g / (|g| + eps); Keras g / (|g| + eps / sqrt(1 - b2)).
        let step = |c| run(adam(0.0, false, 1e-3, c), &[0.1], &[0.01])[0];
        let torch = 1.0 - 0.1 * 0.01 / (0.01 + 1e-3);
        assert_close(step(Convention::PyTorch), torch, 1e-12);
        let keras = 1.0 - 0.1 * 0.01 / (0.01 + 1e-3 / 0.001_f64.sqrt());
        assert_close(step(Convention::Keras), keras, 1e-12);
    }

    #[test]
    fn decoupled_decay_is_not_in_the_moments() {
        let adamw = run(adam(0.5, true, 0.0, Convention::PyTorch), &[0.1], &[5.0]);
        assert_all_close(&adamw, &[1.0 - 0.1 * 0.5 - 0.1]);
        let l2 = run(adam(0.5, false, 0.0, Convention::PyTorch), &[0.1], &[5.0]);
        assert_all_close(&l2, &[0.9]);
    }

    #[test]
    fn clipping_by_hand() {
        let both = |gradient: &[f64], clip| clipped(gradient, clip).map(|r| r.value);
        assert_all_close(&both(&[3.0, -4.0], 10.0), &[5.0, 1.0]);
        assert_all_close(&both(&[3.0, -4.0], 2.5), &[5.0, 0.5]);
        assert_all_close(&both(&[0.0, 0.0], 2.5), &[0.0, 1.0]);
    }

    #[test]
    fn the_bound_of_a_norm_holds_and_catches_a_forgotten_element() {
        let row = Random(71).row(1000, 1.0);
        let [norm, scale] = clipped(&row, 3.0);
        let device = |row: &[f64]| row.iter().map(|g| (*g as f32).powi(2)).sum::<f32>().sqrt();
        let far = |device: f32, r: Rounded| (f64::from(device) - r.value).abs() / (r.error * U);
        assert!(far(device(&row), norm) < 0.5 && far(3.0 / device(&row), scale) < 0.5);
        assert!(far(device(&row[..999]), norm) > 1.0, "{}", far(device(&row[..999]), norm));
    }

    #[test]
    fn a_gradient_of_zero_moves_nothing_and_its_bound_is_finite() {
        let rule = adam(0.0, false, 1e-8, Convention::PyTorch);
        let slot = rule.update(1, 0.1, Slot::exact(1.0, 0.0, 0.0), Rounded::exact(0.0));
        assert_close(slot.p.value, 1.0, 0.0);
        assert!(slot.p.error < 2.0, "{}", slot.p.error);
    }

    #[test]
    fn bounds_hold_on_a_hostile_device_and_catch_a_wrong_step() {
        let mut random = Random(70);
        let (p, m) = (random.matrix(4, 9, 1.0), random.matrix(4, 9, 0.1));
        let (v, g) = (random.matrix(4, 9, 0.1).map(|m| f64::from((m * m) as f32)), random.matrix(4, 9, 0.5));
        for convention in [Convention::PyTorch, Convention::Keras] {
            for rule in [
                sgd(0.9, true, 1e-4, convention),
                adam(1e-2, true, 1e-7, convention),
                adam(1e-2, false, 1e-7, convention),
            ] {
                let at_step = |step| rule.update_matrix(step, 0.1, [&p, &m, &v], &g);
                let expected = at_step(2);
                for seed in 0..10 {
                    let device = hostile::run(seed, || at_step(2));
                    for (device, expected) in device.iter().zip(&expected) {
                        // to_f32 may round once more than the operations did.
                        let ratio = worst_ratio(&device.value.to_f32(), expected, 1);
                        assert!(ratio <= 1.5, "{rule:?}: {ratio}");
                    }
                }
                if matches!(rule, Rule::Adam { .. }) {
                    let late = at_step(3)[0].value.to_f32();
                    assert!(worst_ratio(&late, &expected[0], 1) > 100.0, "{rule:?}");
                }
            }
        }
    }
}
