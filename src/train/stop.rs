//! When a run ends and which of its states is the best.

use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

/// How often checkpoints are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// Only when the run is interrupted.
    Never,
    /// At multiples of so many steps.
    Steps(u64),
    /// When so much time has passed since the last one.
    Time(Duration),
}

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted =
            || format!("expected steps such as 500, a time such as 30s, 5m or 2h, or never, found `{text}`");
        if text == "never" {
            return Ok(Self::Never);
        }
        let units = [("s", 1), ("m", 60), ("h", 3600)];
        let unit = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)));
        let (number, unit) = unit.map_or((text, None), |(number, unit)| (number, Some(unit)));
        let number: u64 = number.parse().map_err(|_| wanted())?;
        match unit {
            _ if number == 0 => Err(wanted()),
            None => Ok(Self::Steps(number)),
            Some(unit) => {
                number.checked_mul(unit).map(Duration::from_secs).map(Self::Time).ok_or_else(wanted)
            }
        }
    }
}

impl Every {
    /// The next step after `step` at which to stop for it, where steps are counted.
    pub fn next(self, step: u64) -> Option<u64> {
        match self {
            Self::Steps(n) => Some((step / n + 1) * n),
            _ => None,
        }
    }

    /// Whether a checkpoint is due at `step`, the last one being `since` ago.
    pub fn due(self, step: u64, since: Duration) -> bool {
        match self {
            Self::Never => false,
            Self::Steps(n) => step.is_multiple_of(n),
            Self::Time(time) => since >= time,
        }
    }
}

/// What an evaluation on validation rows says of a state: fewer errors are better, then a smaller NLL.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Wrong rows.
    pub errors: u64,
    /// Mean negative log-likelihood.
    pub nll: f64,
}

impl Score {
    /// Whether it is better than `other`.
    pub fn beats(&self, other: &Self) -> bool {
        self.errors < other.errors || (self.errors == other.errors && self.nll < other.nll)
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// All steps were done.
    Complete,
    /// Validation had not improved for long enough.
    Patience,
    /// `--max-steps`
    MaxSteps,
    /// `--max-minutes`
    MaxMinutes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_steps_or_times() {
        let seconds = |s| Every::Time(Duration::from_secs(s));
        for (text, every) in [
            ("never", Every::Never),
            ("500", Every::Steps(500)),
            ("30s", seconds(30)),
            ("5m", seconds(300)),
            ("2h", seconds(7200)),
        ] {
            assert_eq!(text.parse(), Ok(every), "{text}");
        }
        for text in ["", "0", "0s", "m", "-1", "5 m", "1.5h", "5d", "99999999999999999h"] {
            assert!(text.parse::<Every>().is_err(), "{text}");
        }
    }

    #[test]
    fn checkpoints_are_due_at_multiples_and_after_times() {
        let every = Every::Steps(10);
        assert_eq!((every.next(0), every.next(9), every.next(10)), (Some(10), Some(10), Some(20)));
        assert!(every.due(20, Duration::ZERO) && !every.due(21, Duration::MAX));
        let every = Every::Time(Duration::from_secs(2));
        assert!(every.due(1, Duration::from_secs(2)) && !every.due(1, Duration::from_secs(1)));
        assert!(!Every::Never.due(0, Duration::MAX));
    }

    #[test]
    fn errors_count_before_nll() {
        let score = |errors, nll| Score { errors, nll };
        assert!(score(3, 9.0).beats(&score(4, 1.0)));
        assert!(score(3, 0.5).beats(&score(3, 0.6)));
        assert!(!score(3, 0.5).beats(&score(3, 0.5)));
        assert!(!score(3, f64::NAN).beats(&score(3, 1.0)));
    }
}
