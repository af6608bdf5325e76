//! The loss of a run: which terms, how they are weighted, and what it is called on the command line.

use std::fmt;

use crate::error::{Error, Result};
use crate::kernels::head::Soft;
use crate::reference::SoftLoss;

/// `hard_weight * CE + soft_weight * soft`, both means over the batch; T^2 is in the soft loss, not in
/// its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// What pulls the student towards its teacher.
    pub soft: Soft,
    /// T: both logits are divided by it in the soft term.
    pub temperature: f64,
    /// Of the cross-entropy with the labels.
    pub hard_weight: f64,
    /// Of the soft term.
    pub soft_weight: f64,
    /// Label smoothing of the hard term.
    pub smoothing: f64,
}

impl Loss {
    /// The hard loss alone: how a teacher is trained.
    pub const HARD: Self =
        Self { soft: Soft::FORWARD_KL, temperature: 1.0, hard_weight: 1.0, soft_weight: 0.0, smoothing: 0.0 };

    /// # Errors
    /// [`Error::Usage`] for a temperature that is not positive, weights that are negative or both
    /// zero, smoothing outside [0, 1), parameters of the soft loss out of their range, or standardised
    /// logits in a loss that compares no softmaxes.
    pub fn check(&self) -> Result<()> {
        let Self { soft, temperature, hard_weight, soft_weight, smoothing } = *self;
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(Error::usage("temperature", "a number above 0", temperature.to_string())
                .with_hint("1 leaves the logits as they are; 2 to 20 is usual"));
        }
        for (name, w) in [("hard_weight", hard_weight), ("soft_weight", soft_weight)] {
            not_negative(name, w)?;
        }
        if hard_weight + soft_weight <= 0.0 {
            return Err(Error::usage("hard_weight and soft_weight", "at least one above 0", "both 0"));
        }
        if !(0.0..1.0).contains(&smoothing) {
            return Err(Error::usage("label smoothing", "at least 0 and below 1", smoothing.to_string()));
        }
        match soft.loss {
            SoftLoss::Jsd { beta } => {
                let hint = "near 0 it is beta times forward KL, near 1 it is (1 - beta) times reverse KL";
                inside("beta of JSD", beta).map_err(|e| e.with_hint(hint))?;
            }
            SoftLoss::Dkd { alpha, beta } => {
                not_negative("alpha of DKD", alpha)?;
                not_negative("beta of DKD", beta)?;
            }
            SoftLoss::ClippedKl { clip } => inside("clip", clip)?,
            SoftLoss::VirtualTeacher { confidence } => {
                inside("confidence of the virtual teacher", confidence)?
            }
            _ => {}
        }
        if soft.standardise && !soft.loss.is_softmax_based() {
            return Err(Error::usage(
                "standardised logits",
                "a loss that compares softmaxes",
                soft.loss.name(),
            ));
        }
        if soft.standardise && matches!(soft.loss, SoftLoss::ClippedKl { .. }) {
            return Err(Error::usage("standardised logits", "a loss without a clip", "both"));
        }
        Ok(())
    }

    /// As [`Loss::check`], and whether `k` classes are enough for the soft loss.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn check_classes(&self, k: usize) -> Result<()> {
        self.check()?;
        self.soft.check_classes(k)
    }

    /// Whether labels make a difference.
    pub fn uses_labels(&self) -> bool {
        self.hard_weight > 0.0 || self.soft.loss.needs_labels()
    }
}

fn not_negative(name: &str, value: f64) -> Result<()> {
    match value >= 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::usage(name, "a number of at least 0", value.to_string())),
    }
}

fn inside(name: &str, value: f64) -> Result<()> {
    match value > 0.0 && value < 1.0 {
        true => Ok(()),
        false => Err(Error::usage(name, "above 0 and below 1", value.to_string())),
    }
}

/// The options of `limbeck distill` that ask for this loss, each by its canonical name.
impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.soft.loss {
            SoftLoss::ClippedKl { clip } => write!(f, "--loss forward-kl --clip {clip:e}")?,
            loss => write!(f, "--loss {}", loss.name())?,
        }
        match self.soft.loss {
            SoftLoss::Jsd { beta } => write!(f, " --loss-beta {beta}")?,
            SoftLoss::Dkd { alpha, beta } => write!(f, " --dkd-alpha {alpha} --dkd-beta {beta}")?,
            SoftLoss::VirtualTeacher { confidence } => write!(f, " --virtual-confidence {confidence}")?,
            _ => {}
        }
        if self.soft.standardise {
            f.write_str(" --standardise-logits")?;
        }
        write!(f, " --temperature {}", self.temperature)?;
        write!(f, " --hard-weight {} --soft-weight {}", self.hard_weight, self.soft_weight)?;
        if self.smoothing > 0.0 {
            write!(f, " --label-smoothing {}", self.smoothing)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(loss: SoftLoss) -> Loss {
        Loss { soft: Soft { loss, standardise: false }, soft_weight: 1.0, ..Loss::HARD }
    }

    #[test]
    fn parameters_out_of_range_are_refused_by_name() {
        let bad = [
            (with(SoftLoss::Jsd { beta: 0.0 }), "beta of JSD"),
            (with(SoftLoss::Jsd { beta: 1.0 }), "beta of JSD"),
            (with(SoftLoss::Dkd { alpha: -1.0, beta: 1.0 }), "alpha of DKD"),
            (with(SoftLoss::Dkd { alpha: 1.0, beta: f64::NAN }), "beta of DKD"),
            (with(SoftLoss::ClippedKl { clip: 0.0 }), "clip"),
            (with(SoftLoss::VirtualTeacher { confidence: 1.0 }), "confidence"),
            (Loss { temperature: 0.0, ..Loss::HARD }, "temperature"),
            (Loss { hard_weight: -0.5, ..Loss::HARD }, "hard_weight"),
            (Loss { hard_weight: 0.0, ..Loss::HARD }, "at least one above 0"),
            (Loss { smoothing: 1.0, ..Loss::HARD }, "smoothing"),
        ];
        for (loss, word) in bad {
            let error = loss.check().expect_err(word).to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        for loss in [SoftLoss::Mse, SoftLoss::Sigmoid, SoftLoss::ClippedKl { clip: 1e-7 }] {
            let loss = Loss { soft: Soft { loss, standardise: true }, ..Loss::HARD };
            loss.check().expect_err("nothing to standardise");
        }
        for soft in Soft::kinds() {
            Loss { soft, soft_weight: 1.0, ..Loss::HARD }.check_classes(3).expect("usual parameters");
        }
        with(SoftLoss::Dkd { alpha: 1.0, beta: 8.0 }).check_classes(2).expect_err("two classes");
    }

    #[test]
    fn a_loss_is_the_options_that_ask_for_it() {
        assert_eq!(
            with(SoftLoss::ClippedKl { clip: 1e-7 }).to_string(),
            "--loss forward-kl --clip 1e-7 --temperature 1 --hard-weight 1 --soft-weight 1"
        );
        let soft = Soft { loss: SoftLoss::Dkd { alpha: 1.0, beta: 8.0 }, standardise: true };
        let loss = Loss { soft, temperature: 4.0, smoothing: 0.1, soft_weight: 0.009, ..Loss::HARD };
        assert_eq!(
            loss.to_string(),
            "--loss dkd --dkd-alpha 1 --dkd-beta 8 --standardise-logits --temperature 4 --hard-weight 1 \
             --soft-weight 0.009 --label-smoothing 0.1"
        );
    }
}
