//! Where a fault began: the step walked a dispatch at a time, and the first tensor that is not finite.

use crate::error::Result;
use crate::train::state::State;
use crate::train::{Run, batch_at};

/// The first tensor that is not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The step, from 1.
    pub step: u64,
    /// The dispatch that wrote it.
    pub dispatch: String,
    /// The tensor.
    pub tensor: String,
    /// How many of its numbers are not finite.
    pub bad: usize,
    /// Of how many.
    pub of: usize,
}

impl Fault {
    /// The layer that it belongs to, from 0, where it belongs to one.
    pub fn layer(&self) -> Option<usize> {
        self.dispatch.split('.').find_map(|part| part.strip_prefix('l')?.parse().ok())
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { step, dispatch, tensor, bad, of } = self;
        write!(f, "`{tensor}`, ")?;
        if let Some(layer) = self.layer() {
            write!(f, "layer {layer}, ")?;
        }
        write!(f, "written by `{dispatch}` in step {step}: {bad} of {of} numbers are not finite")
    }
}

impl Run<'_> {
    /// The step at which [`Run::advance`] found numbers that are not finite.
    pub fn fault(&self) -> Option<u64> {
        self.fault
    }

    /// Goes from `good` once more to the step before `step`, at which a fault showed, and looks for the
    /// first tensor that is not finite in it and the next one: weights that an update spoils show in the
    /// step after. The run has no use afterwards.
    ///
    /// # Errors
    /// As [`Run::restore`] and [`Run::advance`].
    pub fn first_fault(&mut self, good: &State, step: u64) -> Result<Option<Fault>> {
        self.restore(good)?;
        self.advance_until(step.saturating_sub(2).max(good.step), || false, |_| Ok(()))?;
        while self.done < step {
            if let Some(fault) = self.trace()? {
                return Ok(Some(fault));
            }
        }
        Ok(None)
    }

    /// The next step, a dispatch at a time.
    fn trace(&mut self) -> Result<Option<Fault>> {
        self.write_order(self.done / self.steps_per_epoch())?;
        let batch = batch_at(self.done, self.rows, self.recipe.batch);
        self.step.stage(self.gpu, &self.feed, &self.order, batch.start..batch.start + batch.rows)?;
        let scalars = self.scalars(self.done);
        self.done += 1;
        let is_bad = |bits: &&u32| !f32::from_bits(**bits).is_finite();
        self.step.trace_blocking(self.gpu, &scalars, |traced| {
            traced.into_iter().find_map(|t| {
                let (tensor, bits) =
                    t.outputs.into_iter().find(|(_, bits)| bits.iter().any(|b| is_bad(&b)))?;
                let bad = bits.iter().filter(is_bad).count();
                Some(Fault { step: self.done, dispatch: t.label, tensor, bad, of: bits.len() })
            })
        })
    }
}
