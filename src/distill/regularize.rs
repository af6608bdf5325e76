//! What keeps a student from learning its rows by heart: Hinton, Vinyals and Dean 2015, section 3.

use crate::error::{Error, Result};
use crate::gpu::{Plan, Tensor};
use crate::kernels::gather::Jitter;
use crate::kernels::max_norm;
use crate::mlp::{Dropout, Mlp};

/// What is done to the trained network, never to a teacher nor in an evaluation; all of it nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Regularize {
    /// The share of each hidden layer's output that a step drops (Srivastava et al. 2014); what it keeps
    /// is divided by 1 - rate.
    pub dropout: f64,
    /// The same of the inputs.
    pub input_dropout: f64,
    /// The longest that the incoming weights of a hidden unit may be after a step.
    pub max_norm: Option<f64>,
    /// The most pixels that the images of a batch move in x and in y; a live teacher sees them moved too.
    pub jitter: usize,
}

impl Regularize {
    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// [`Error::Usage`] where they do not.
    pub fn check(&self) -> Result<()> {
        for (name, rate) in [("dropout", self.dropout), ("dropout of the inputs", self.input_dropout)] {
            if !(0.0..1.0).contains(&rate) {
                return Err(Error::usage(name, "a share of at least 0 and below 1", rate.to_string()));
            }
        }
        match self.max_norm {
            Some(norm) if !(norm > 0.0 && norm.is_finite()) => {
                Err(Error::usage("max-norm", "a number above 0", norm.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// For the forward pass of replicas with this ring of steps.
    pub(super) fn dropout(&self, ring: &Tensor) -> Option<Dropout> {
        let dropout = Dropout { steps: ring.clone(), inputs: self.input_dropout, hidden: self.dropout };
        (self.dropout > 0.0 || self.input_dropout > 0.0).then_some(dropout)
    }

    /// For rows of this shape.
    ///
    /// # Errors
    /// [`Error::Usage`] where they are not images larger than what they are to move.
    pub fn jitter(&self, shape: &[usize]) -> Result<Option<Jitter>> {
        if self.jitter == 0 {
            return Ok(None);
        }
        let [height, width, channels] = match *shape {
            [height, width] => [height, width, 1],
            [height, width, channels @ 1..=4] => [height, width, channels],
            _ => {
                let expected = "rows that are images, [height, width] or [height, width, channels up to 4]";
                return Err(Error::usage("jitter", expected, format!("rows of shape {shape:?}"))
                    .with_hint("idx images and arrays [rows, height, width] have such a shape"));
            }
        };
        if self.jitter >= height.min(width) {
            let expected = format!("fewer pixels than an image of {height} x {width} has either way");
            return Err(Error::usage("jitter", expected, self.jitter.to_string()));
        }
        Ok(Some(Jitter { height, width, channels, reach: self.jitter }))
    }

    /// Records what follows the optimiser's update of `student`; `norms` are the guard's.
    pub(super) fn record_update(
        &self,
        plan: &mut Plan<'_>,
        student: &Mlp,
        norms: Option<&Tensor>,
    ) -> Result<()> {
        let Some(limit) = self.max_norm else { return Ok(()) };
        let hidden = student.layers.len() - 1;
        student.layers[..hidden].iter().enumerate().try_for_each(|(i, layer)| {
            let label = format!("student.l{i}.max_norm");
            max_norm::record(plan, &label, limit as f32, &layer.weight, norms)
        })
    }
}
