//! How a number changes over a run: pure functions of the step, so a run that is cut in two at any step
//! goes on as if it had not been.
//!
//! One grammar for every schedule, `[warmup:STEPS,]SHAPE`:
//!
//! ```text
//! constant                   the option's own value, always
//! linear[:END[:STEPS]]       in a straight line from it to END (0), over STEPS (the run)
//! cosine[:END[:STEPS]]       the same along half a cosine
//! exponential:END[:STEPS]    the same by a constant factor per step
//! step:FACTOR:STEPS          times FACTOR after every STEPS
//! warmup:STEPS,…             first in a straight line from 0 to the value; then the shape, over what is left
//! ```

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// One number's way through a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Schedule {
    /// Steps of the rise from 0; 0 for none.
    pub warmup: u64,
    /// What comes after it.
    pub shape: Shape,
}

/// The course after the warm-up. `steps` of `None` is the rest of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Shape {
    /// One value.
    #[default]
    Constant,
    /// A straight line.
    Linear {
        /// The last value.
        end: f64,
        /// Where it is reached.
        steps: Option<u64>,
    },
    /// Half a cosine.
    Cosine {
        /// The last value.
        end: f64,
        /// Where it is reached.
        steps: Option<u64>,
    },
    /// A constant factor per step.
    Exponential {
        /// The last value, above 0.
        end: f64,
        /// Where it is reached.
        steps: Option<u64>,
    },
    /// A factor now and then.
    Step {
        /// The factor.
        factor: f64,
        /// Steps from one to the next.
        every: u64,
    },
}

impl Schedule {
    /// The value of step `t`, counted from 1, of a run of `steps`; `base` is the value without a schedule.
    ///
    /// The first step of a shape has the base itself and its last step END; the last step of a warm-up
    /// has the base.
    pub fn at(&self, base: f64, t: u64, steps: u64) -> f64 {
        if t <= self.warmup {
            return base * t as f64 / self.warmup as f64;
        }
        let done = t - self.warmup - 1;
        let left = steps.saturating_sub(self.warmup);
        // From 0 at the first step to 1 at the last, and 1 from there on.
        let way = |span: Option<u64>| match span.unwrap_or(left).saturating_sub(1) {
            0 => 1.0,
            last => (done as f64 / last as f64).min(1.0),
        };
        match self.shape {
            Shape::Constant => base,
            Shape::Linear { end, steps } => base + (end - base) * way(steps),
            Shape::Cosine { end, steps } => end + (base - end) * 0.5 * (1.0 + (PI * way(steps)).cos()),
            Shape::Exponential { end, steps } => base * (end / base).powf(way(steps)),
            Shape::Step { factor, every } => base * factor.powf((done / every.max(1)) as f64),
        }
    }

    /// Whether every step has the same value.
    pub fn is_constant(&self) -> bool {
        *self == Self::default()
    }

    /// Makes sure that a number that starts at `base` stays at least 0, or above it where it has to.
    ///
    /// # Errors
    /// [`Error::Usage`] naming `what`.
    pub fn check(&self, what: &str, base: f64, above_zero: bool) -> Result<()> {
        let least = if above_zero { "a value that stays above 0" } else { "values of at least 0" };
        let bad = |found: String| Err(Error::usage(format!("{what} schedule"), least, found));
        let fits = |x: f64| x.is_finite() && (x > 0.0 || !above_zero && x >= 0.0);
        match self.shape {
            Shape::Exponential { end, .. } if !(end > 0.0 && end.is_finite() && base > 0.0) => {
                bad(format!("exponential from {base} to {end}"))
            }
            Shape::Linear { end, .. } | Shape::Cosine { end, .. } if !fits(end) => bad(format!("{end}")),
            Shape::Step { factor, .. } if !fits(factor) => bad(format!("a factor of {factor}")),
            _ => Ok(()),
        }
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (warmup, shape) = match text.strip_prefix("warmup:") {
            Some(rest) => {
                let (steps, shape) = rest.split_once(',').unwrap_or((rest, "constant"));
                (whole(steps)?, shape)
            }
            None => (0, text),
        };
        let parts: Vec<&str> = shape.split(':').collect();
        let end_of = |default: Option<&str>| {
            let end =
                parts.get(1).copied().or(default).ok_or("the value it ends at, such as exponential:1e-5")?;
            let steps = parts.get(2).map(|s| whole(s)).transpose()?;
            Ok::<_, String>((number(end)?, steps))
        };
        let shape = match (parts[0], parts.len()) {
            ("constant", 1) => Shape::Constant,
            ("linear", 1..=3) => end_of(Some("0")).map(|(end, steps)| Shape::Linear { end, steps })?,
            ("cosine", 1..=3) => end_of(Some("0")).map(|(end, steps)| Shape::Cosine { end, steps })?,
            ("exponential", 1..=3) => end_of(None).map(|(end, steps)| Shape::Exponential { end, steps })?,
            ("step", 3) => Shape::Step { factor: number(parts[1])?, every: whole(parts[2])? },
            _ => {
                return Err("[warmup:STEPS,] and constant, linear[:END[:STEPS]], cosine[:END[:STEPS]], \
                            exponential:END[:STEPS] or step:FACTOR:STEPS"
                    .to_owned());
            }
        };
        Ok(Self { warmup, shape })
    }
}

fn number(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|x: &f64| x.is_finite()).ok_or_else(|| format!("a number instead of `{text}`"))
}

fn whole(text: &str) -> std::result::Result<u64, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("a number of steps instead of `{text}`"))
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.warmup > 0 {
            write!(f, "warmup:{},", self.warmup)?;
        }
        let span = |steps: Option<u64>| steps.map_or(String::new(), |n| format!(":{n}"));
        match self.shape {
            Shape::Constant => f.write_str("constant"),
            Shape::Linear { end, steps } => write!(f, "linear:{end}{}", span(steps)),
            Shape::Cosine { end, steps } => write!(f, "cosine:{end}{}", span(steps)),
            Shape::Exponential { end, steps } => write!(f, "exponential:{end}{}", span(steps)),
            Shape::Step { factor, every } => write!(f, "step:{factor}:{every}"),
        }
    }
}

/// What of a replica changes over its run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Schedules {
    /// Of the learning rate.
    pub lr: Schedule,
    /// Of SGD's momentum.
    pub momentum: Schedule,
    /// Of T.
    pub temperature: Schedule,
    /// Of the hard loss's weight.
    pub hard_weight: Schedule,
    /// Of the soft loss's weight.
    pub soft_weight: Schedule,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str, base: f64, steps: u64) -> Vec<f64> {
        let schedule: Schedule = text.parse().expect(text);
        (1..=steps).map(|t| schedule.at(base, t, steps)).collect()
    }

    #[track_caller]
    fn assert_values(text: &str, base: f64, expected: &[f64]) {
        let got = values(text, base, expected.len() as u64);
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-12, "{text}: {got}, expected {expected}");
        }
    }

    #[test]
    fn shapes_by_hand() {
        assert_values("constant", 3.0, &[3.0, 3.0, 3.0]);
        assert_values("linear", 4.0, &[4.0, 3.0, 2.0, 1.0, 0.0]);
        assert_values("linear:1", 4.0, &[4.0, 3.0, 2.0, 1.0]);
        assert_values("linear:8:3", 4.0, &[4.0, 6.0, 8.0, 8.0, 8.0]);
        let half = 0.5_f64.sqrt();
        assert_values("cosine", 2.0, &[2.0, 1.0 + half, 1.0, 1.0 - half, 0.0]);
        assert_values("cosine:1", 3.0, &[3.0, 2.0 + half, 2.0, 2.0 - half, 1.0]);
        assert_values("exponential:1", 8.0, &[8.0, 4.0, 2.0, 1.0]);
        assert_values("step:0.5:2", 8.0, &[8.0, 8.0, 4.0, 4.0, 2.0]);
        assert_values("warmup:2,linear", 4.0, &[2.0, 4.0, 4.0, 2.0, 0.0]);
        assert_values("warmup:4", 4.0, &[1.0, 2.0, 3.0, 4.0, 4.0, 4.0]);
        // A run of one step, and a warm-up longer than the run.
        assert_values("cosine:1", 3.0, &[1.0]);
        assert_values("warmup:4,cosine", 4.0, &[1.0, 2.0]);
    }

    #[test]
    fn a_schedule_is_read_as_it_is_written() {
        for text in
            ["constant", "linear:1", "cosine:0:500", "exponential:0.00001", "warmup:500,step:0.1:1000"]
        {
            let schedule: Schedule = text.parse().expect(text);
            assert_eq!(schedule.to_string(), text);
        }
        let bad = [
            "",
            "liner",
            "linear:x",
            "linear:1:0",
            "linear:1:2:3",
            "exponential",
            "step:0.1",
            "step:0.1:0",
            "constant:1",
            "warmup:x,linear",
            "warmup:0,linear",
            "cosine:inf",
            "linear,warmup:5",
        ];
        for text in bad {
            text.parse::<Schedule>().expect_err(text);
        }
    }

    #[test]
    fn what_a_number_must_not_become_is_refused() {
        let of = |text: &str| text.parse::<Schedule>().expect(text);
        of("linear").check("soft weight", 1.0, false).expect("a weight may end at 0");
        of("linear").check("temperature", 4.0, true).expect_err("T may not");
        of("linear:-1").check("soft weight", 1.0, false).expect_err("negative");
        of("exponential:0").check("learning rate", 1.0, false).expect_err("no factor leads to 0");
        of("exponential:1").check("soft weight", 0.0, false).expect_err("nor away from it");
        of("step:-0.5:3").check("learning rate", 1.0, false).expect_err("negative factor");
    }
}
