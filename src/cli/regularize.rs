//! What keeps a network from learning its rows by heart.

use clap::Args;

use crate::distill::Regularize;
use crate::error::{Error, Result};

#[derive(Args)]
#[command(next_help_heading = "Regularisation")]
pub struct RegularizeArgs {
    /// Share of each hidden layer's output that a step drops.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    dropout: f64,
    /// Share of the inputs that a step drops.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    input_dropout: f64,
    /// Shorten each hidden unit's incoming weights to this norm after a step where they are longer.
    #[arg(long, value_name = "NORM")]
    max_norm: Option<f64>,
    /// Move each image by up to so many pixels in x and y, drawn anew in every step; the teacher sees the same.
    #[arg(long, default_value_t = 0, value_name = "PIXELS")]
    jitter: usize,
}

impl RegularizeArgs {
    pub fn regularize(&self) -> Result<Regularize> {
        for (name, share) in [("--dropout", self.dropout), ("--input-dropout", self.input_dropout)] {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::usage(name, "at least 0 and below 1", share.to_string()));
            }
        }
        if let Some(norm) = self.max_norm.filter(|n| !(*n > 0.0 && n.is_finite())) {
            return Err(Error::usage("--max-norm", "a number above 0", norm.to_string()));
        }
        Ok(Regularize {
            dropout: self.dropout,
            input_dropout: self.input_dropout,
            max_norm: self.max_norm,
            jitter: self.jitter,
        })
    }
}
