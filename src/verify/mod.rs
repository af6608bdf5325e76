//! Holds every kernel to the f64 reference: the one mechanism behind the tests, `limbeck doctor`
//! and `limbeck bench`, which checks before it times.
//!
//! A [`Case`] says shapes, strides, replicas, options and the kind of data. Its check makes the
//! inputs from the counter-based generator, lays every tensor between guard zones of NaN, poisons the
//! outputs, runs the kernel through its public `record`, and holds every element of every output to
//! the reference's value and bound. What it finds is a [`Verdict`].
//!
//! ```text
//! zone     tensors in poisoned memory
//! inputs   the kinds of data
//! matmul, gather, dropout, head, feature, ensemble, metrics, norm, sgd, adam, max_norm    one kernel each: its Case and its check
//! cases    the fixed lists: thorough for the tests, short for doctor
//! doctor   all of it on every adapter, with a verdict per kernel
//! ```

pub mod adam;
pub mod cases;
pub mod doctor;
pub mod dropout;
pub mod ensemble;
pub mod feature;
pub mod gather;
pub mod head;
mod inputs;
pub mod matmul;
pub mod max_norm;
pub mod metrics;
pub mod norm;
pub mod sgd;
mod zone;

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::gpu::{Plan, Program};
use crate::kernels::matmul::Choice;
use crate::reference::{self, Bounded, Worst};

pub use inputs::Data;
use zone::Contents;
pub use zone::{POISON, Padding};

/// One check of one kernel.
#[derive(Clone, Debug)]
pub enum Case {
    /// See [`matmul`].
    Matmul(matmul::Case),
    /// See [`gather`].
    Gather(gather::Case),
    /// See [`dropout`].
    Dropout(dropout::Case),
    /// See [`head`].
    Head(head::Case),
    /// See [`feature`].
    Feature(feature::Case),
    /// See [`ensemble`].
    Ensemble(ensemble::Case),
    /// See [`metrics`].
    Metrics(metrics::Case),
    /// See [`norm`].
    Norm(norm::Case),
    /// See [`sgd`].
    Sgd(sgd::Case),
    /// See [`adam`].
    Adam(adam::Case),
    /// See [`max_norm`].
    MaxNorm(max_norm::Case),
}

impl Case {
    /// Runs the kernel and holds it to the reference.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses; a wrong result is a [`Verdict`], not an error.
    pub fn check(&self, gpu: &Gpu) -> Result<Verdict> {
        match self {
            Self::Matmul(c) => matmul::check(gpu, c),
            Self::Gather(c) => gather::check(gpu, c),
            Self::Dropout(c) => dropout::check(gpu, c),
            Self::Head(c) => head::check(gpu, c),
            Self::Feature(c) => feature::check(gpu, c),
            Self::Ensemble(c) => ensemble::check(gpu, c),
            Self::Metrics(c) => metrics::check(gpu, c),
            Self::Norm(c) => norm::check(gpu, c),
            Self::Sgd(c) => sgd::check(gpu, c),
            Self::Adam(c) => adam::check(gpu, c),
            Self::MaxNorm(c) => max_norm::check(gpu, c),
        }
    }

    /// The operation: what other variants can stand in for.
    pub fn kernel(&self) -> &'static str {
        match self {
            Self::Matmul(_) => "matmul",
            Self::Gather(_) => "gather",
            Self::Dropout(_) => "dropout",
            Self::Head(_) => "head",
            Self::Feature(_) => "feature",
            Self::Ensemble(_) => "ensemble",
            Self::Metrics(_) => "metrics",
            Self::Norm(_) => "norm",
            Self::Sgd(_) => "sgd",
            Self::Adam(_) => "adam",
            Self::MaxNorm(_) => "max_norm",
        }
    }

    /// The member of the matmul family that does the work. Another one can stand in for it.
    pub fn member(&self) -> Option<Choice> {
        match self {
            Self::Matmul(c) => Some(c.choice),
            _ => None,
        }
    }

    /// Whether the case is over in a moment on any device: not one of those that go to the length of
    /// what a kernel can walk.
    pub fn is_quick(&self) -> bool {
        match self {
            Self::Matmul(c) => c.k < 10_000,
            Self::Head(c) => c.k < 10_000,
            _ => true,
        }
    }

    /// Whether the device has what the case's variant needs.
    pub fn runs_on(&self, gpu: &Gpu) -> bool {
        match self {
            Self::Matmul(c) => c.choice.variant.runs_on(gpu),
            _ => true,
        }
    }

    /// Which form of it.
    pub fn variant(&self) -> String {
        match self {
            Self::Matmul(c) => c.variant(),
            Self::Gather(c) => c.variant(),
            Self::Dropout(c) => c.variant(),
            Self::Head(c) => c.variant(),
            Self::Feature(c) => c.kind.name().to_owned(),
            Self::Ensemble(c) => c.variant(),
            Self::Metrics(_) | Self::Norm(_) => String::new(),
            Self::Sgd(c) => c.variant(),
            Self::Adam(c) => c.variant(),
            Self::MaxNorm(c) => c.variant(),
        }
    }
}

/// What one check found.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The operation.
    pub kernel: &'static str,
    /// Which form of it.
    pub variant: String,
    /// The case, to run it again.
    pub case: String,
    /// The output that `worst` is an element of.
    pub output: String,
    /// The element nearest to, or past, its bound.
    pub worst: Worst,
    /// A guard zone that changed or a padding column that is not zero.
    pub stray: Option<String>,
    /// A hash of every bit of every output: two runs of a case must agree in it.
    pub digest: u64,
}

impl Verdict {
    /// Every element within its bound, nothing touched that is not the kernel's.
    pub fn passes(&self) -> bool {
        self.worst.passes() && self.stray.is_none()
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Worst { ratio, index, got, expected } = self.worst;
        write!(f, "{} {}: {ratio:.3} of the bound", self.kernel, self.variant)?;
        if !self.worst.passes() {
            write!(f, " ({} element {index}: got {got:e}, expected {expected:e})", self.output)?;
        }
        if let Some(stray) = &self.stray {
            write!(f, " ({stray})")?;
        }
        write!(f, " in {}", self.case)
    }
}

/// Collects what a check sees of a kernel's outputs.
struct Judge {
    worst: Option<(String, Worst)>,
    stray: Option<String>,
    digest: u64,
}

impl Judge {
    fn new() -> Self {
        Self { worst: None, stray: None, digest: 0xcbf2_9ce4_8422_2325 }
    }

    /// Holds `device` to its bound.
    fn hold(&mut self, output: &str, replica: usize, device: &[f32], expected: &Bounded, n: usize) {
        let worst = reference::worst(device, expected, n);
        if self.worst.as_ref().is_none_or(|(_, w)| worst.ratio > w.ratio) {
            self.worst = Some((format!("{output}[{replica}]"), worst));
        }
    }

    /// Holds what lies around an output to what was there before, and takes its bits.
    fn guard(&mut self, contents: &Contents, written: impl Fn(usize) -> bool) {
        if self.stray.is_none() {
            self.stray = contents.stray(written);
        }
        for bits in contents.bits() {
            // FNV-1a, a word at a time: equality is all that is asked of it.
            self.digest = (self.digest ^ u64::from(*bits)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn verdict(self, kernel: &'static str, variant: String, case: &impl std::fmt::Debug) -> Verdict {
        let (output, worst) = self.worst.expect("a check holds at least one output");
        Verdict {
            kernel,
            variant,
            case: format!("{case:?}"),
            output,
            worst,
            stray: self.stray,
            digest: self.digest,
        }
    }
}

/// Records, runs `steps` slots and leaves the outputs for reading.
fn run(gpu: &Gpu, steps: u32, record: impl FnOnce(&mut Plan<'_>) -> Result<()>) -> Result<()> {
    let mut plan = Plan::new(gpu);
    record(&mut plan)?;
    let program: Program = plan.finish()?;
    program.submit(gpu, steps)
}
