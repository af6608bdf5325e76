//! Adam and AdamW against [`crate::reference::optimizer`], PyTorch's and Keras's convention.

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::kernels::adam::{self, Adam};
use crate::kernels::step::{self, Step};
use crate::reference::{Convention, Matrix, Rule};
use crate::verify::inputs::{Data, Inputs};
use crate::verify::sgd::{arena_len, scaled_update, scales, variant};
use crate::verify::zone::{Padding, Zone};
use crate::verify::{Judge, Verdict, run};

/// One update of an arena.
#[derive(Clone, Debug)]
pub struct Case {
    /// Parameters of a replica.
    pub len: usize,
    /// Replicas, each with its own learning rate.
    pub replicas: usize,
    /// The fixed numbers.
    pub adam: Adam,
    /// Keras's place for epsilon instead of PyTorch's.
    pub keras: bool,
    /// The step, from 1.
    pub step: u64,
    /// Learning rate of the first replica.
    pub lr: f32,
    /// As in [`sgd`](super::sgd::Case).
    pub scale: Option<f32>,
    /// Kind of parameters, gradient and moments.
    pub data: Data,
    /// Of the inputs.
    pub seed: u64,
}

impl Case {
    pub(super) fn variant(&self) -> String {
        let name = if self.adam.decoupled { "adamw" } else { "adam" };
        variant(name, self.scale, self.len)
    }

    /// The corrections in the convention of the case, see `shaders/adam.wgsl`.
    fn corrections(&self) -> [f32; 2] {
        let t = self.step as f64;
        let first = 1.0 - self.adam.beta_1.powf(t);
        let second = (1.0 - self.adam.beta_2.powf(t)).sqrt();
        match self.keras {
            true => [(second / first) as f32, 1.0],
            false => [(1.0 / first) as f32, (1.0 / second) as f32],
        }
    }
}

/// See [`super::Case::check`].
///
/// # Errors
/// As [`super::Case::check`].
pub fn check(gpu: &Gpu, case: &Case) -> Result<Verdict> {
    let Case { len, replicas, adam, lr, scale, data, seed, .. } = *case;
    let mut inputs = Inputs::new(seed);
    let len = arena_len(len);
    let shape = [replicas, 1, len];
    let mut arena = |name: &str, positive: bool| -> Result<(Zone, Vec<Matrix>)> {
        let mut values: Vec<f32> = (0..replicas).flat_map(|_| inputs.values(data, 1, len, 1e15)).collect();
        if positive {
            values.iter_mut().for_each(|x| *x = x.abs());
        }
        let zone = Zone::filled(gpu, name, shape, Padding::NONE, &values)?;
        Ok((zone, values.chunks_exact(len).map(|v| Matrix::from_f32(1, len, v)).collect()))
    };
    let (weight, weight_ref) = arena("weight", false)?;
    let (gradient, gradient_ref) = arena("gradient", false)?;
    let (first, first_ref) = arena("moment_1", false)?;
    let (second, second_ref) = arena("moment_2", true)?;
    let ring = step::ring(gpu, replicas)?;
    let rate = |r: usize| lr * (1.0 + r as f32);
    let [correction_1, correction_2] = case.corrections();
    let scalars: Vec<Step> =
        (0..replicas).map(|r| Step { lr: rate(r), correction_1, correction_2, ..Step::default() }).collect();
    step::write(gpu, &ring, &scalars)?;
    let norms = scales(gpu, replicas, scale)?;
    run(gpu, 1, |plan| {
        let moments = [&first.tensor, &second.tensor];
        let (gradient, weight, norms) = (&gradient.tensor, &weight.tensor, norms.as_ref());
        adam::record(plan, "check.adam", &adam, &ring, gradient, weight, moments, norms)
    })?;

    let rule = Rule::Adam {
        beta1: adam.beta_1,
        beta2: adam.beta_2,
        epsilon: adam.epsilon,
        weight_decay: adam.weight_decay,
        decoupled: adam.decoupled,
        convention: if case.keras { Convention::Keras } else { Convention::PyTorch },
    };
    let mut judge = Judge::new();
    let (weight, first, second) = (weight.read(gpu)?, first.read(gpu)?, second.read(gpu)?);
    for r in 0..replicas {
        let state = [&weight_ref[r], &first_ref[r], &second_ref[r]];
        let lr = f64::from(rate(r));
        let [w, m, v] = scaled_update(&rule, case.step, lr, state, &gradient_ref[r], scale);
        judge.hold("weight", r, &weight.replica(r), &w, 1);
        judge.hold("moment_1", r, &first.replica(r), &m, 1);
        judge.hold("moment_2", r, &second.replica(r), &v, 1);
    }
    for contents in [&weight, &first, &second] {
        judge.guard(contents, |_| true);
    }
    Ok(judge.verdict("adam", case.variant(), case))
}
