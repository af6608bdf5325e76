//! SGD against [`crate::reference::optimizer`], PyTorch's convention.

use crate::error::Result;
use crate::gpu::Tensor;
use crate::gpu::device::Gpu;
use crate::gpu::program::SLOTS;
use crate::kernels::step::{self, Step};
use crate::kernels::{norm, sgd};
use crate::reference::{Bounded, Convention, Matrix, Rule};
use crate::verify::inputs::{Data, Inputs};
use crate::verify::zone::{Padding, Zone};
use crate::verify::{Judge, Verdict, run};

/// One update of an arena.
#[derive(Clone, Debug)]
pub struct Case {
    /// Parameters of a replica.
    pub len: usize,
    /// Replicas, each with its own learning rate.
    pub replicas: usize,
    /// Look ahead along the velocity.
    pub nesterov: bool,
    /// Decay of the velocity.
    pub momentum: f32,
    /// Coupled L2.
    pub weight_decay: f32,
    /// Learning rate of the first replica.
    pub lr: f32,
    /// What the gradient is scaled with, a power of two; 0 leaves everything as it is.
    pub scale: Option<f32>,
    /// Kind of parameters, gradient and velocity.
    pub data: Data,
    /// Of the inputs.
    pub seed: u64,
}

impl Case {
    pub(super) fn variant(&self) -> String {
        let name = if self.nesterov { "nesterov" } else { "momentum" };
        variant(name, self.scale, self.len)
    }
}

/// `momentum scaled, workgroups of 64`
pub(super) fn variant(name: &str, scale: Option<f32>, len: usize) -> String {
    let scaled = if scale.is_some() { " scaled" } else { "" };
    format!("{name}{scaled}, workgroups of {}", sgd::workgroup(arena_len(len) / 8))
}

/// Norms `[r, slots, 4]` with this scale in the first slot, and in the others what would show.
pub(super) fn scales(gpu: &Gpu, replicas: usize, scale: Option<f32>) -> Result<Option<Tensor>> {
    let Some(scale) = scale else { return Ok(None) };
    let slots = SLOTS as usize;
    let row = |i| if i % slots == 0 { [7.0, scale, 0.0, 0.0] } else { [f32::NAN; 4] };
    let rows: Vec<f32> = (0..replicas * slots).flat_map(row).collect();
    Tensor::upload(gpu, "norms", [replicas, slots, norm::WIDTH], &rows).map(Some)
}

/// The reference's update with a scaled gradient: a power of two rounds nothing.
pub(super) fn scaled_update(
    rule: &Rule,
    step: u64,
    lr: f64,
    state: [&Matrix; 3],
    gradient: &Matrix,
    scale: Option<f32>,
) -> [Bounded; 3] {
    let scale = f64::from(scale.unwrap_or(1.0));
    if scale <= 0.0 {
        return state.map(|m| Bounded { value: m.clone(), scale: Matrix::zeros(m.rows, m.cols) });
    }
    let scaled = gradient.data.iter().map(|g| g * scale).collect();
    rule.update_matrix(step, lr, state, &Matrix::new(gradient.rows, gradient.cols, scaled))
}

/// The length of an arena of `len` parameters or a few more, all of them looked at.
pub(super) fn arena_len(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// See [`super::Case::check`].
///
/// # Errors
/// As [`super::Case::check`].
pub fn check(gpu: &Gpu, case: &Case) -> Result<Verdict> {
    let Case { len, replicas, nesterov, momentum, weight_decay, lr, scale, data, seed } = *case;
    let mut inputs = Inputs::new(seed);
    let len = arena_len(len);
    let shape = [replicas, 1, len];
    let mut arena = |name: &str| -> Result<(Zone, Vec<Matrix>)> {
        let values: Vec<Vec<f32>> = (0..replicas).map(|_| inputs.values(data, 1, len, 1e15)).collect();
        let zone = Zone::filled(gpu, name, shape, Padding::NONE, &values.concat())?;
        Ok((zone, values.iter().map(|v| Matrix::from_f32(1, len, v)).collect()))
    };
    let (weight, weight_ref) = arena("weight")?;
    let (gradient, gradient_ref) = arena("gradient")?;
    let (velocity, velocity_ref) = arena("momentum")?;
    let ring = step::ring(gpu, replicas)?;
    let rate = |r: usize| lr * (1.0 + r as f32);
    let scalars: Vec<Step> =
        (0..replicas).map(|r| Step { lr: rate(r), momentum, ..Step::default() }).collect();
    step::write(gpu, &ring, &scalars)?;
    let norms = scales(gpu, replicas, scale)?;
    run(gpu, 1, |plan| {
        let [w, g, m] = [&weight, &gradient, &velocity].map(|z| &z.tensor);
        sgd::record(plan, "check.sgd", nesterov, weight_decay, &ring, g, w, m, norms.as_ref())
    })?;

    let rule = Rule::Sgd {
        momentum: f64::from(momentum),
        nesterov,
        weight_decay: f64::from(weight_decay),
        convention: Convention::PyTorch,
    };
    let mut judge = Judge::new();
    let (weight, velocity) = (weight.read(gpu)?, velocity.read(gpu)?);
    let none = Matrix::zeros(1, len);
    for r in 0..replicas {
        let state = [&weight_ref[r], &velocity_ref[r], &none];
        let [w, m, _] = scaled_update(&rule, 1, f64::from(rate(r)), state, &gradient_ref[r], scale);
        judge.hold("weight", r, &weight.replica(r), &w, 1);
        judge.hold("momentum", r, &velocity.replica(r), &m, 1);
    }
    judge.guard(&weight, |_| true);
    judge.guard(&velocity, |_| true);
    Ok(judge.verdict("sgd", case.variant(), case))
}
