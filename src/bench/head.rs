//! The loss head over batch x classes.

use crate::bench::{Record, hold, peak::Peak, time, values};
use crate::error::Result;
use crate::gpu::program::SLOTS;
use crate::gpu::{Gpu, Plan, Tensor};
use crate::kernels::head::{self, Form, Head, Soft, Teacher};
use crate::kernels::{metrics, step};
use crate::reference::{self, Matrix, SoftLoss};

/// Batch, classes and why.
pub const SHAPES: &[(&str, usize, usize)] = &[
    // Digits: rows shorter than a subgroup.
    ("head/128x10", 128, 10),
    // ImageNet's classes in a large batch: the bandwidth case.
    ("head/4096x1000", 4096, 1000),
    // A vocabulary.
    ("head/wide-classes", 512, 32_000),
];

/// Times the head over the named shapes, in the forms named or else the one that a run uses.
///
/// # Errors
/// [`crate::Error::Run`] where a result is wrong; [`crate::Error::Device`].
pub fn run(gpu: &Gpu, peak: &Peak, names: &[String], variants: &[String]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for &(name, batch, k) in SHAPES {
        if !names.is_empty() && !names.iter().any(|n| n == name || n == "head" || name.ends_with(n.as_str()))
        {
            continue;
        }
        let bench = Logits::new(gpu, batch, k)?;
        let chosen = Form::of(gpu, k, SOFT);
        for form in Form::all(SOFT).into_iter().filter(|f| f.takes(k)) {
            let named = variants.contains(&form.text());
            if !named && (form != chosen || !variants.is_empty()) {
                continue;
            }
            let times = time(gpu, &bench.checked(gpu, form)?)?;
            // z and v read once, d_z written once.
            let bytes = 3.0 * 4.0 * (batch * k) as f64;
            let mut record = times.record("head", &form.text(), name, 0.0, bytes);
            record.fraction_of_copy = Some(bytes / times.median / peak.bytes);
            records.push(record);
        }
    }
    Ok(records)
}

struct Logits {
    host: [Vec<f32>; 2],
    labels: Vec<u32>,
    ring: Tensor,
    order: Tensor,
    label_tensor: Tensor,
    z: Tensor,
    teacher: Teacher,
    d_z: Tensor,
    stats: Tensor,
}

const TEMPERATURE: f32 = 4.0;
const SOFT: Option<Soft> = Some(Soft::FORWARD_KL);

impl Logits {
    fn new(gpu: &Gpu, batch: usize, k: usize) -> Result<Self> {
        let host = [3, 4].map(|seed| values(seed, batch * k).iter().map(|v| 8.0 * v).collect::<Vec<f32>>());
        let shape = [1, batch, k];
        let labels: Vec<u32> = (0..batch).map(|i| (i * 7 % k) as u32).collect();
        let ring = step::ring(gpu, 1)?;
        let now = step::Step {
            rows: batch as u32,
            temperature: TEMPERATURE,
            hard_weight: 0.1,
            soft_weight: 0.9,
            ..step::Step::default()
        };
        step::write(gpu, &ring, &vec![now; SLOTS as usize])?;
        let order: Vec<u32> = (0..batch as u32).collect();
        Ok(Self {
            ring,
            order: Tensor::upload(gpu, "order", [1, 1, batch], &order)?,
            label_tensor: Tensor::upload(gpu, "labels", [1, 1, batch], &labels)?,
            z: Tensor::upload(gpu, "z", shape, &host[0])?,
            teacher: Teacher::Live(Tensor::upload(gpu, "v", shape, &host[1])?),
            d_z: Tensor::zeros(gpu, "d_z", shape)?,
            stats: Tensor::zeros(gpu, "stats", [1, SLOTS as usize * batch, metrics::WIDTH])?,
            host,
            labels,
        })
    }

    /// The head's program, after its gradient was held to the reference on the first and last rows.
    fn checked(&self, gpu: &Gpu, form: Form) -> Result<crate::gpu::Program> {
        let mut plan = Plan::new(gpu);
        let io = Head {
            steps: &self.ring,
            order: &self.order,
            labels: &self.label_tensor,
            z: &self.z,
            teacher: &self.teacher,
            soft: Soft::FORWARD_KL,
            d_z: &self.d_z,
            stats: &self.stats,
        };
        self.d_z.fill_bits(gpu, 0x7fc0_0000);
        head::record(&mut plan, "head", &io, form)?;
        let program = plan.finish()?;
        program.submit(gpu, 1)?;
        let [_, batch, k] = self.z.shape;
        let seen = batch.min(2);
        for rows in [0..seen, batch - seen..batch] {
            let part = |i: usize| Matrix::from_f32(seen, k, &self.host[i][rows.start * k..rows.end * k]);
            // The reference divides by its own rows, the kernel by the batch's.
            let share = seen as f64 / batch as f64;
            let oracle = reference::Head {
                hard_weight: f64::from(0.1f32) * share,
                soft_weight: f64::from(0.9f32) * share,
                temperature: f64::from(TEMPERATURE),
                label_smoothing: 0.0,
                soft_loss: SoftLoss::ForwardKl,
                standardise: false,
            };
            let labels: Vec<_> = self.labels[rows.clone()].iter().map(|l| Some(*l as usize)).collect();
            let expected = oracle.evaluate(&part(0), Some(&part(1)), &labels).d_z;
            let got = self.d_z.rows(rows).read_blocking::<f32>(gpu)?;
            hold(&format!("head {batch} x {k}, form {}", form.text()), &got, &expected, 2)?;
        }
        Ok(program)
    }
}
