//! Gradient accumulation: how a step parts into micro-batches.

use crate::distill::features::Feature;
use crate::error::{Error, Result};
use crate::kernels::step;

/// The micro-batches of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Micro {
    /// Rows in one, at most.
    pub rows: usize,
    /// How many make a step.
    pub count: usize,
}

impl Micro {
    /// # Errors
    /// [`Error::Usage`] where several micro-batches meet losses on hidden layers.
    pub fn check(self, features: &[Feature]) -> Result<()> {
        if self.count == 1 || features.is_empty() {
            return Ok(());
        }
        Err(Error::usage("gradient accumulation", "no loss on hidden layers", features.len().to_string())
            .with_hint("leave --accumulate or --hint and --similarity away"))
    }

    /// Of a step's rows those of micro-batch `i`: how many lie before it and how many are in it.
    pub(super) fn part(self, i: usize, rows: u32) -> [u32; 2] {
        let before = ((i * self.rows) as u32).min(rows);
        [before, (rows - before).min(self.rows as u32)]
    }

    /// The scalars of each micro-batch of a step with these: as many rows as it has of the step's, and the
    /// weights times its share of them. The head divides by the micro-batch's rows, so what adds up is the
    /// mean over the step.
    pub(super) fn scalars(self, whole: &step::Step) -> impl Iterator<Item = step::Step> {
        (0..self.count).map(move |i| {
            let [before, rows] = self.part(i, whole.rows);
            let share = |weight: f32| match rows == whole.rows {
                true => weight,
                false => (f64::from(weight) * f64::from(rows) / f64::from(whole.rows)) as f32,
            };
            // What is drawn on the device goes by step and row: the rows of two micro-batches share no draw.
            let step = (whole.step - 1).wrapping_mul(self.count as u32).wrapping_add(i as u32 + 1);
            step::Step {
                step,
                row_start: whole.row_start + before,
                rows,
                hard_weight: share(whole.hard_weight),
                soft_weight: share(whole.soft_weight),
                ..*whole
            }
        })
    }
}
