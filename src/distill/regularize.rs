//! What keeps a student from learning its rows by heart: Hinton, Vinyals and Dean 2015, section 3.

use crate::error::{Error, Result};
use crate::gpu::Tensor;
use crate::mlp::Dropout;

/// What is done to the trained network, never to a teacher nor in an evaluation; all of it nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Regularize {
    /// The share of each hidden layer's output that a step drops (Srivastava et al. 2014); what it keeps
    /// is divided by 1 - rate.
    pub dropout: f64,
    /// The same of the inputs.
    pub input_dropout: f64,
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
        Ok(())
    }

    /// For the forward pass of replicas with this ring of steps.
    pub(super) fn dropout(&self, ring: &Tensor) -> Option<Dropout> {
        let dropout = Dropout { steps: ring.clone(), inputs: self.input_dropout, hidden: self.dropout };
        (self.dropout > 0.0 || self.input_dropout > 0.0).then_some(dropout)
    }
}
