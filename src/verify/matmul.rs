//! The matmul family against [`reference::linalg`] and [`reference::activation`].

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::kernels::matmul::family::{SPLITS, Variant};
use crate::kernels::matmul::{self, Activation, Choice, Epilogue, Form, VARIANTS};
use crate::reference::linalg::{column_sums, matmul};
use crate::reference::{self, Bounded, Matrix, Rounded};
use crate::verify::inputs::{Data, Inputs};
use crate::verify::zone::{Padding, Zone};
use crate::verify::{Judge, Verdict, run};

/// Every member of the family with every split of K, whether or not a device can run it.
pub fn choices() -> Vec<Choice> {
    let splits = |variant: &'static Variant| {
        SPLITS
            .into_iter()
            .filter(|s| *s == 1 || variant.splits())
            .map(move |splits| Choice { variant, splits })
    };
    VARIANTS.iter().flat_map(splits).collect()
}

/// Which operand all replicas share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shared {
    /// Neither.
    #[default]
    None,
    /// The left one: a batch that all replicas see.
    A,
    /// The right one: a teacher's weights.
    B,
}

/// What is done with the product; the fields are those of [`Epilogue`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "see Epilogue")]
pub struct Ends {
    pub accumulate: bool,
    pub bias: bool,
    pub keep: bool,
    pub row_sums: bool,
    pub activation: Activation,
    pub mask: Activation,
}

impl Ends {
    /// Every combination that the kernel has.
    pub fn all() -> Vec<(Form, Self)> {
        use Activation::{Gelu, Identity, Relu, Tanh};
        let mut all = Vec::new();
        for accumulate in [false, true] {
            all.extend(Form::ALL.map(|form| (form, Self { accumulate, ..Self::default() })));
            all.push((Form::WeightGradient, Self { accumulate, row_sums: true, ..Self::default() }));
        }
        for activation in [Identity, Relu, Tanh, Gelu] {
            all.push((Form::Forward, Self { bias: true, activation, ..Self::default() }));
            if activation != Identity {
                // With a part of the gradient that a feature loss has left there.
                for accumulate in [false, true] {
                    all.push((Form::InputGradient, Self { mask: activation, accumulate, ..Self::default() }));
                }
            }
        }
        all.push((Form::Forward, Self { bias: true, keep: true, activation: Gelu, ..Self::default() }));
        all
    }

    /// Nothing is done with the product but to store it, perhaps with its row sums: what the first half
    /// of a product with a split K does.
    pub fn is_bare(&self) -> bool {
        Self { row_sums: false, ..*self } == Self::default()
    }

    /// One of the three products of a layer with ReLU: what nearly every run dispatches.
    pub fn is_usual(&self, form: Form) -> bool {
        let usual = match form {
            Form::Forward => Self { bias: true, activation: Activation::Relu, ..Self::default() },
            Form::InputGradient => Self { mask: Activation::Relu, ..Self::default() },
            Form::WeightGradient => Self { row_sums: true, ..Self::default() },
        };
        *self == usual
    }

    fn text(&self, form: Form) -> String {
        let mut text = match form {
            Form::Forward => "forward",
            Form::InputGradient => "d_input",
            Form::WeightGradient => "d_weight",
        }
        .to_owned();
        let words = [
            (self.accumulate, "accumulate"),
            (self.bias, "bias"),
            (self.keep, "keep"),
            (self.row_sums, "row_sums"),
            (self.activation != Activation::Identity, self.activation.name()),
            (self.mask != Activation::Identity, "mask"),
            (self.mask != Activation::Identity, self.mask.name()),
        ];
        words.iter().filter(|w| w.0).for_each(|w| {
            text.push('+');
            text.push_str(w.1);
        });
        text
    }
}

/// C [m, n] = op(A) op(B) over k.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are the matmul's own names")]
pub struct Case {
    pub choice: Choice,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub replicas: usize,
    pub shared: Shared,
    pub padding: Padding,
    pub form: Form,
    pub ends: Ends,
    pub data: Data,
    pub seed: u64,
}

impl Case {
    pub(super) fn variant(&self) -> String {
        self.choice.text()
    }

    /// The product and what is done with it, such as `forward+bias+relu`.
    pub fn task(&self) -> String {
        self.ends.text(self.form)
    }
}

/// See [`super::Case::check`].
///
/// # Errors
/// As [`super::Case::check`].
pub fn check(gpu: &Gpu, case: &Case) -> Result<Verdict> {
    let Case { m, n, k, replicas, padding, form, ends, data, .. } = *case;
    let mut inputs = Inputs::new(case.seed);
    // A cube of 1e30 overflows, and past tanh's saturation there is nothing to compare.
    let smooth =
        [ends.activation, ends.mask].iter().any(|a| matches!(a, Activation::Tanh | Activation::Gelu));
    let huge = if smooth { 100.0 } else { 1e15 };
    let (a_rows, a_cols) = if form == Form::WeightGradient { (k, m) } else { (m, k) };
    let (b_rows, b_cols) = if form == Form::Forward { (n, k) } else { (k, n) };
    let count = |shared| if case.shared == shared { 1 } else { replicas };
    let mut operand = |name, replicas, rows, cols| -> Result<(Zone, Vec<Matrix>)> {
        let values: Vec<Vec<f32>> = (0..replicas).map(|_| inputs.values(data, rows, cols, huge)).collect();
        let zone = Zone::filled(gpu, name, [replicas, rows, cols], padding, &values.concat())?;
        Ok((zone, values.iter().map(|v| Matrix::from_f32(rows, cols, v)).collect()))
    };
    let (a, a_ref) = operand("a", count(Shared::A), a_rows, a_cols)?;
    let (b, b_ref) = operand("b", count(Shared::B), b_rows, b_cols)?;
    let (before, before_ref) = operand("c", replicas, m, n)?;
    let (bias, bias_ref) = operand("bias", replicas, 1, n)?;
    let (saved, saved_ref) = operand("saved", replicas, m, n)?;
    let c = if ends.accumulate { before } else { Zone::output(gpu, "c", [replicas, m, n], padding)? };
    let keep = Zone::output(gpu, "keep", [replicas, m, n], padding)?;
    let (begun, begun_ref) = operand("row_sums", replicas, 1, m)?;
    let row_sums = match ends.accumulate {
        true => begun,
        false => Zone::output_unpadded(gpu, "row_sums", [replicas, 1, m])?,
    };

    let epilogue = Epilogue {
        accumulate: ends.accumulate,
        bias: ends.bias.then_some(&bias.tensor),
        keep: ends.keep.then_some(&keep.tensor),
        activation: ends.activation,
        mask: (ends.mask != Activation::Identity).then_some((ends.mask, &saved.tensor)),
        row_sums: ends.row_sums.then_some(&row_sums.tensor),
    };
    run(gpu, 1, |plan| {
        let [a, b, c] = [&a, &b, &c].map(|zone| &zone.tensor);
        matmul::record_with(plan, "check.matmul", case.choice, form, a, b, c, &epilogue)
    })?;

    let mut judge = Judge::new();
    let (c, keep, row_sums) = (c.read(gpu)?, keep.read(gpu)?, row_sums.read(gpu)?);
    for r in 0..replicas {
        let of = |all: &'_ Vec<Matrix>| all[r % all.len()].clone();
        let (a, b) = (of(&a_ref), of(&b_ref));
        let mut n_of_z = k;
        let mut z = matmul(&a, &b, form == Form::WeightGradient, form == Form::Forward);
        if ends.accumulate {
            z = z.plus(&before_ref[r]);
            n_of_z += 1;
        }
        if ends.bias {
            z = z.plus_bias(&bias_ref[r].data);
            n_of_z += 1;
        }
        if ends.keep {
            judge.hold("keep", r, &keep.replica(r), &z, n_of_z);
        }
        if ends.row_sums {
            let mut sums = column_sums(&a);
            if ends.accumulate {
                sums = sums.plus(&begun_ref[r]);
            }
            let n_of_sums = k + usize::from(ends.accumulate);
            judge.hold("row_sums", r, &row_sums.replica(r), &sums, n_of_sums);
        }
        let (c_ref, n_of_c) = match (ends.activation, ends.mask) {
            (Activation::Identity, Activation::Identity) => (z, n_of_z),
            (activation, Activation::Identity) => (oracle(activation).forward_bounded(&z, n_of_z), 1),
            (_, mask) => (masked(&z, n_of_z, mask, &saved_ref[r]), 1),
        };
        judge.hold("c", r, &c.replica(r), &c_ref, n_of_c);
    }
    judge.guard(&c, |_| true);
    // A tensor that was not asked for must not be touched either.
    judge.guard(&keep, |_| ends.keep);
    if ends.row_sums {
        judge.guard(&row_sums, |_| true);
    }
    Ok(judge.verdict("matmul", case.variant(), case))
}

fn masked(d_y: &Bounded, n: usize, mask: Activation, saved: &Matrix) -> Bounded {
    let one = Rounded::exact(1.0);
    // ReLU and tanh from their output, GELU from its pre-activation.
    let derivative = |s: &f64| match (mask, Rounded::exact(*s)) {
        (Activation::Tanh, y) => one - y * y,
        (other, s) => oracle(other).derivative_rounded(s),
    };
    let d_z: Vec<Rounded> =
        d_y.to_rounded(n).into_iter().zip(&saved.data).map(|(d, s)| d * derivative(s)).collect();
    Bounded::from_rounded(saved.rows, saved.cols, &d_z)
}

/// The reference's activation of the same name.
pub fn oracle(activation: Activation) -> reference::Activation {
    match activation {
        Activation::Identity => reference::Activation::Identity,
        Activation::Relu => reference::Activation::Relu,
        Activation::Tanh => reference::Activation::Tanh,
        Activation::Gelu => reference::Activation::Gelu,
    }
}
