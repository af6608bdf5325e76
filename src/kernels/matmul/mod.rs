//! `C[r] = epilogue(op(A[r]) . op(B[r]))`: one host type for the whole family of matmul kernels.
//!
//! The three products of a training step, for a layer with weights `w` `[out, in]`:
//!
//! | form | product | C |
//! |---|---|---|
//! | [`Form::Forward`] | `x . w^T` | activations `[batch, out]` |
//! | [`Form::InputGradient`] | `d_y . w` | `[batch, in]` |
//! | [`Form::WeightGradient`] | `d_y^T . x` | `[out, in]` |

pub mod family;
mod pieces;
mod product;

pub use family::{Choice, Question, VARIANTS};

use crate::error::{Error, Result};
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::{Kernel, Plan, Tensor};
use product::Product;

params! {
    /// `struct Params` of every `shaders/matmul_*.wgsl`.
    struct Params {
        m: u32, n: u32, k: u32,
        a_stride: u32, b_stride: u32, c_stride: u32,
        a_replica: u32, b_replica: u32, c_replica: u32,
        bias_replica: u32, extra_replica: u32, saved_replica: u32,
        row_start: u32, col_start: u32,
        k_chunk: u32, replicas: u32,
    }
}

/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] =
    &[&family::PLAIN, &family::VEC4, &family::TILE, &family::SUBGROUP, &family::REDUCE];

/// Which of the three products, and so which operand is stored transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `A [m, k] . B^T`, B stored `[n, k]`.
    Forward,
    /// `A [m, k] . B [k, n]`.
    InputGradient,
    /// `A^T . B [k, n]`, A stored `[k, m]`.
    WeightGradient,
}

impl Form {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Forward, Self::InputGradient, Self::WeightGradient];

    /// The name in profiles.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::InputGradient => "input-gradient",
            Self::WeightGradient => "weight-gradient",
        }
    }
}

/// The non-linearity of the hidden layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// None.
    #[default]
    Identity,
    /// max(x, 0)
    Relu,
    /// tanh x
    Tanh,
    /// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the tanh form of GELU.
    Gelu,
}

impl Activation {
    fn code(self) -> u32 {
        match self {
            Self::Identity => 0,
            Self::Relu => 1,
            Self::Tanh => 2,
            Self::Gelu => 3,
        }
    }

    /// The name in files and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Relu => "relu",
            Self::Tanh => "tanh",
            Self::Gelu => "gelu",
        }
    }

    /// The activation of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Identity, Self::Relu, Self::Tanh, Self::Gelu].into_iter().find(|a| a.name() == name)
    }

    /// Whether the backward pass needs the pre-activation (else the output is enough).
    pub fn needs_pre_activation(self) -> bool {
        self == Self::Gelu
    }
}

/// What is done with the product before it is stored, in this order.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Add what C holds, and what `row_sums` holds.
    pub accumulate: bool,
    /// Add `[r, 1, n]` to every row.
    pub bias: Option<&'a Tensor>,
    /// Keep the value so far, laid out as C: GELU's backward pass needs it.
    pub keep: Option<&'a Tensor>,
    /// Apply this.
    pub activation: Activation,
    /// Multiply by the derivative of the activation, from what the forward pass saved of it
    /// (its output, or for GELU its pre-activation), laid out as C.
    pub mask: Option<(Activation, &'a Tensor)>,
    /// Also store the row sums of op(A), `[r, 1, m]`: the bias gradient beside the weight gradient.
    pub row_sums: Option<&'a Tensor>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Flags {
    form: Form,
    accumulate: bool,
    bias: bool,
    keep: bool,
    row_sums: bool,
    activation: Activation,
    mask: Activation,
}

impl Flags {
    fn new(form: Form, e: &Epilogue<'_>) -> Self {
        Self {
            form,
            accumulate: e.accumulate,
            bias: e.bias.is_some(),
            keep: e.keep.is_some(),
            row_sums: e.row_sums.is_some(),
            activation: e.activation,
            mask: e.mask.map_or(Activation::Identity, |(a, _)| a),
        }
    }

    /// Every combination that `record` takes.
    fn all() -> Vec<Self> {
        let plain = |form| Self::new(form, &Epilogue::default());
        let activations = [
            Activation::Identity,
            Activation::Relu,
            Activation::Tanh,
            Activation::Gelu,
        ];
        let mut all = Vec::new();
        for form in Form::ALL {
            for accumulate in [false, true] {
                all.push(Self { accumulate, ..plain(form) });
            }
        }
        for activation in activations {
            let keep = activation.needs_pre_activation();
            let forward = Self { bias: true, activation, ..plain(Form::Forward) };
            all.push(forward);
            if keep {
                all.push(Self { keep, ..forward });
            }
            if activation != Activation::Identity {
                for accumulate in [false, true] {
                    all.push(Self { mask: activation, accumulate, ..plain(Form::InputGradient) });
                }
            }
        }
        for accumulate in [false, true] {
            all.push(Self { row_sums: true, accumulate, ..plain(Form::WeightGradient) });
        }
        all
    }

    /// The first half of a product whose K is split: no epilogue but the row sums.
    fn partial() -> Vec<Self> {
        let plain = |form| Self::new(form, &Epilogue::default());
        let sums = Self { row_sums: true, ..plain(Form::WeightGradient) };
        Form::ALL.into_iter().map(plain).chain([sums]).collect()
    }

    /// The second half's constants: the epilogue of the whole.
    fn for_reduce(&self, splits: u32) -> Constants {
        let transposition = ["TRANSPOSE_A", "TRANSPOSE_B"];
        let mut constants = self.constants(false);
        constants.retain(|(name, _)| !transposition.contains(name));
        constants.push(("SPLITS", Constant::U32(splits)));
        constants
    }

    fn constants(&self, turned: bool) -> Constants {
        let [transpose_a, transpose_b] = [self.form == Form::WeightGradient, self.form == Form::Forward];
        // A^T stands where B stood, and B^T where A did.
        let [transpose_a, transpose_b] =
            if turned { [!transpose_b, !transpose_a] } else { [transpose_a, transpose_b] };
        vec![
            ("TRANSPOSE_A", Constant::Bool(transpose_a)),
            ("TRANSPOSE_B", Constant::Bool(transpose_b)),
            ("ACCUMULATE", Constant::Bool(self.accumulate)),
            ("BIAS", Constant::Bool(self.bias)),
            ("KEEP", Constant::Bool(self.keep)),
            ("ROW_SUMS", Constant::Bool(self.row_sums)),
            ("ACTIVATION", Constant::U32(self.activation.code())),
            ("MASK", Constant::U32(self.mask.code())),
        ]
    }
}

/// Records one product with the variant that the profile, or else the built-in rule, chooses for
/// its shape on this device.
///
/// # Errors
/// As [`Plan::dispatch`].
///
/// # Panics
/// Where the shapes do not fit each other: our own bug, since layers are checked before.
pub fn record(
    plan: &mut Plan<'_>,
    label: &str,
    form: Form,
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
    epilogue: &Epilogue<'_>,
) -> Result<()> {
    let [replicas, m, n] = c.shape;
    let k = if form == Form::WeightGradient { a.shape[1] } else { a.shape[2] };
    let choice = Question { form, replicas, m, n, k }.answer(plan.gpu);
    record_with(plan, label, choice, form, a, b, c, epilogue)
}

/// Records one product with a given variant: for tests, benchmarks and tuning.
///
/// # Errors
/// As [`Plan::dispatch`]; [`Error::Usage`] where the sums are too long.
///
/// # Panics
/// As [`record`].
#[allow(clippy::too_many_arguments, reason = "a product's operands, one each")]
pub fn record_with(
    plan: &mut Plan<'_>,
    label: &str,
    choice: Choice,
    form: Form,
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
    epilogue: &Epilogue<'_>,
) -> Result<()> {
    let [replicas, m, n] = c.shape;
    let (a_shape, b_shape) = (&a.shape[1..], &b.shape[1..]);
    let k = match form {
        Form::WeightGradient => a_shape[0],
        _ => a_shape[1],
    };
    let (want_a, want_b) = match form {
        Form::Forward => ([m, k], [n, k]),
        Form::InputGradient => ([m, k], [k, n]),
        Form::WeightGradient => ([k, m], [k, n]),
    };
    assert_eq!((a_shape, b_shape), (&want_a[..], &want_b[..]), "{label}: {form:?} into [{m}, {n}]");
    let same_layout = |t: &Tensor| t.shape == c.shape && t.row_stride == c.row_stride;
    assert!(epilogue.keep.is_none_or(same_layout), "{label}: keep");
    assert!(epilogue.mask.is_none_or(|(_, t)| same_layout(t)), "{label}: mask");
    assert!(epilogue.bias.is_none_or(|t| t.shape[2] == n), "{label}: bias");
    assert!(epilogue.row_sums.is_none_or(|t| t.shape[2] == m), "{label}: row sums");

    if !choice.reaches(k) {
        return Err(Error::usage(
            format!("`{label}`: length of the sums"),
            format!("at most {} for `{}`", choice.reach(), choice.text()),
            k.to_string(),
        ));
    }
    let flags = Flags::new(form, epilogue);
    assert!(Flags::all().contains(&flags), "{label}: a combination that no test has seen");
    let product = Product { label, flags, a, b, c, m, n, k, replicas };
    let tiles = product.tiles_at_once(plan, choice, epilogue)?;
    product.record(plan, choice, tiles, epilogue)
}
