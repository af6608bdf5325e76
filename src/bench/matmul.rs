//! Every matmul variant over named shapes.

use crate::bench::{Record, Times, hold, peak::Peak, time_within, values};
use crate::error::Result;
use crate::gpu::{Gpu, Plan, Tensor};
use crate::kernels::matmul::{self, Choice, Epilogue, Form, Question};
use crate::reference::Matrix;
use crate::reference::linalg::matmul as product;

/// A product with a name and a reason.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// `square/1024`
    pub name: &'static str,
    /// The product.
    pub question: Question,
}

const fn shape(name: &'static str, form: Form, m: usize, n: usize, k: usize) -> Shape {
    Shape { name, question: Question { form, replicas: 1, m, n, k } }
}

/// The named shapes. The part before the slash is the group that `--shapes` takes as well.
pub const SHAPES: &[Shape] = &[
    // Square products: the rate that others are held to, and where a cache no longer holds an operand.
    shape("square/512", Form::Forward, 512, 512, 512),
    shape("square/1024", Form::Forward, 1024, 1024, 1024),
    shape("square/1024-nn", Form::InputGradient, 1024, 1024, 1024),
    shape("square/1024-tn", Form::WeightGradient, 1024, 1024, 1024),
    shape("square/2048", Form::Forward, 2048, 2048, 2048),
    // The products of 784-1200-1200-10 -> 784-800-800-10 at batch 128 that carry its FLOPs.
    shape("hinton/teacher-l0", Form::Forward, 128, 1200, 784),
    shape("hinton/teacher-l1", Form::Forward, 128, 1200, 1200),
    shape("hinton/student-l0", Form::Forward, 128, 800, 784),
    shape("hinton/student-l1", Form::Forward, 128, 800, 800),
    shape("hinton/d-weight-l0", Form::WeightGradient, 800, 784, 128),
    shape("hinton/d-weight-l1", Form::WeightGradient, 800, 800, 128),
    shape("hinton/d-input-l1", Form::InputGradient, 128, 800, 800),
    // Ten outputs: few columns to share the work, in each of the three products.
    shape("skinny/forward", Form::Forward, 128, 10, 1200),
    shape("skinny/d-weight", Form::WeightGradient, 10, 800, 128),
    shape("skinny/d-input", Form::InputGradient, 128, 800, 10),
    // One layer of a small student: what a dispatch costs before it computes.
    shape("small/forward", Form::Forward, 64, 32, 64),
    // A vocabulary: the logits of a wide head.
    shape("wide-classes/forward", Form::Forward, 512, 32_000, 64),
];

/// The shapes whose name or group is among `names`; all for an empty list.
pub fn shapes(names: &[String]) -> Vec<Shape> {
    let wanted = |s: &Shape| {
        let group = s.name.split('/').next().unwrap_or(s.name);
        names.is_empty() || names.iter().any(|n| n == s.name || n == group)
    };
    SHAPES.iter().copied().filter(wanted).collect()
}

/// A product's operands on the device.
pub struct Operands {
    question: Question,
    host: [Vec<f32>; 2],
    a: Tensor,
    b: Tensor,
    c: Tensor,
}

impl Operands {
    /// Random operands of the question's shape.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where they do not fit.
    pub fn new(gpu: &Gpu, question: Question) -> Result<Self> {
        let Question { form, replicas, m, n, k } = question;
        let a_shape = if form == Form::WeightGradient { [replicas, k, m] } else { [replicas, m, k] };
        let b_shape = if form == Form::Forward { [replicas, n, k] } else { [replicas, k, n] };
        let host = [values(1, replicas * m * k), values(2, replicas * n * k)];
        Ok(Self {
            question,
            a: Tensor::upload(gpu, "a", a_shape, &host[0])?,
            b: Tensor::upload(gpu, "b", b_shape, &host[1])?,
            c: Tensor::zeros(gpu, "c", [replicas, m, n])?,
            host,
        })
    }

    /// Checks a few rows of the product against the reference, then times it.
    ///
    /// # Errors
    /// [`crate::Error::Run`] where the product is wrong.
    pub fn time(&self, gpu: &Gpu, choice: Choice) -> Result<Times> {
        self.time_within(gpu, choice, f64::INFINITY)
    }

    /// As [`Operands::time`], but where a run takes more than `most` seconds, one is enough.
    pub(super) fn time_within(&self, gpu: &Gpu, choice: Choice, most: f64) -> Result<Times> {
        let Question { form, m, n, k, .. } = self.question;
        self.c.fill_bits(gpu, 0x7fc0_0000);
        let mut plan = Plan::new(gpu);
        let none = Epilogue::default();
        matmul::record_with(&mut plan, "bench", choice, form, &self.a, &self.b, &self.c, &none)?;
        let program = plan.finish()?;
        program.submit(gpu, 1)?;
        // The last replica's last rows: the edge of the tiles is there.
        let rows: Vec<usize> = [0, m / 2, m.saturating_sub(2), m - 1].to_vec();
        let last = self.c.replica(self.question.replicas - 1);
        let part = |data: &[f32], len: usize| data[data.len() - len..].to_vec();
        let (a, b) = (part(&self.host[0], m * k), part(&self.host[1], n * k));
        let a = match form {
            Form::WeightGradient => Matrix::from_f32(k, m, &a).transposed(),
            _ => Matrix::from_f32(m, k, &a),
        };
        let b = match form {
            Form::Forward => Matrix::from_f32(n, k, &b),
            _ => Matrix::from_f32(k, n, &b),
        };
        let expected = product(&a.gather(&rows), &b, false, form == Form::Forward);
        let mut got = Vec::new();
        for row in rows {
            got.extend(last.rows(row..row + 1).read_blocking::<f32>(gpu)?);
        }
        hold(&format!("matmul {} on {}", choice.text(), self.question.key()), &got, &expected, k)?;
        time_within(gpu, &program, most)
    }
}

/// Times the chosen variants (all that run here for an empty list) over `shapes`.
///
/// # Errors
/// [`crate::Error::Run`] where a result is wrong; [`crate::Error::Device`].
pub fn run(gpu: &Gpu, peak: &Peak, shapes: &[Shape], variants: &[String]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for shape in shapes {
        let q = shape.question;
        let operands = Operands::new(gpu, q)?;
        let flops = 2.0 * (q.replicas * q.m * q.n * q.k) as f64;
        let bytes = 4.0 * (q.replicas * (q.m * q.k + q.k * q.n + q.m * q.n)) as f64;
        let mut plain = None;
        let chosen = q.answer(gpu).text();
        for choice in Choice::all(gpu) {
            let text = choice.text();
            let wanted = variants.iter().any(|v| *v == text || *v == choice.variant.name);
            // Without a list: every variant unsplit, and the one that a run would take.
            let wanted = wanted || variants.is_empty() && (choice.splits == 1 || text == chosen);
            if !wanted && text != "plain" {
                continue;
            }
            let times = operands.time(gpu, choice)?;
            let baseline = *plain.get_or_insert(times.median);
            let mut record = times.record("matmul", &text, shape.name, flops, bytes);
            record.ratio_to_plain = Some(baseline / times.median);
            record.fraction_of_peak = Some(flops / times.median / peak.flops);
            record.fraction_of_copy = Some(bytes / times.median / peak.bytes);
            records.push(record);
        }
    }
    Ok(records)
}
