//! How long the rest of a run takes, by the pace of its steps and the last evaluation.

use std::time::{Duration, Instant};

/// Steps done, and how long they took without evaluations.
#[derive(Clone, Copy, Default)]
struct Mark {
    step: u64,
    at: Duration,
}

/// Steps in one pass, and in the whole run.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    pub(super) per_epoch: u64,
    pub(super) steps: u64,
}

/// What the estimate is made from. The clock begins at the first arrival: what went before was compiling and
/// filling caches.
#[derive(Default)]
pub(super) struct Left {
    began: Option<(Instant, u64)>,
    /// The pace is taken from the first to the last of these: over the later half of the steps done, or some
    /// more, since the first submissions are short and cost more by the step.
    marks: [Mark; 3],
    /// The last evaluation; there is one after each epoch or none. Before the first one is over none is
    /// counted, and one that had to compile counts for all until the second one.
    evaluation: Duration,
    /// All of them.
    evaluations: Duration,
}

impl Left {
    /// The evaluation of an epoch has taken so long.
    pub(super) fn evaluated(&mut self, time: Duration) {
        self.evaluation = time;
        self.evaluations += time;
    }

    /// A submission has arrived, with which `step` steps are done.
    pub(super) fn arrived(&mut self, now: Instant, step: u64) {
        let Some((began, first)) = self.began else {
            *self = Self {
                began: Some((now, step)),
                marks: [Mark { step, at: Duration::ZERO }; 3],
                ..Self::default()
            };
            return;
        };
        let [from, next, _] = self.marks;
        let last = Mark { step, at: (now - began).saturating_sub(self.evaluations) };
        let doubled = step - first >= 2 * (next.step - first);
        self.marks = if doubled { [next, last, last] } else { [from, next, last] };
    }

    /// How long it takes from the last arrival on; `None` before the second one.
    pub(super) fn rest(&self, extent: Extent) -> Option<Duration> {
        let [from, _, last] = self.marks;
        let done = last.step.checked_sub(from.step).filter(|n| *n > 0)?;
        let steps = extent.steps.saturating_sub(last.step);
        // At the end of an epoch its own is to come.
        let epochs_before = last.step.saturating_sub(1) / extent.per_epoch;
        let evaluations = (extent.steps / extent.per_epoch).saturating_sub(epochs_before);
        let of_steps = (last.at - from.at).mul_f64(steps as f64 / done as f64);
        Some(of_steps + self.evaluation.mul_f64(evaluations as f64))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::rng;
    use crate::train::Pace;

    /// A run on a device with a clock of its own; times in seconds.
    #[derive(Clone, Copy, Debug)]
    struct Trace {
        extent: (u64, u64),
        log_every: u64,
        compiling: f64,
        submission: f64,
        step: f64,
        /// After each epoch; the first one compiles.
        evaluation: f64,
        first_evaluation: f64,
    }

    impl Trace {
        /// The worst of what the reports after the first tenth said, relative to what was then left, where
        /// that was a tenth of a second or more; and how many reports there were.
        fn worst(self, seed: u64) -> (f64, usize) {
            let extent = Extent { per_epoch: self.extent.0, steps: self.extent.1 };
            let mut submissions = 0;
            let (origin, mut clock, mut device) = (Instant::now(), 0.0_f64, self.compiling);
            let at = |seconds: f64| origin + Duration::from_secs_f64(seconds);
            let (mut left, mut pace) = (Left::default(), Pace { steps: 1, last: origin });
            let (mut done, mut said) = (0, Vec::new());
            while done < extent.steps {
                let to = (done / extent.per_epoch + 1) * extent.per_epoch;
                let to = to.min(extent.steps);
                let mut flying = VecDeque::new();
                let mut submitted = done;
                while done < to {
                    while submitted < to && flying.len() < 3 {
                        let count = pace.steps.min(to - submitted);
                        let jitter = 0.9 + 0.2 * f64::from(rng::uniform(seed, 0, submissions));
                        submissions += 1;
                        device = device.max(clock) + (self.submission + self.step * count as f64) * jitter;
                        submitted += count;
                        flying.push_back((count, device));
                    }
                    let Some((count, finished)) = flying.pop_front() else { break };
                    clock = clock.max(finished);
                    pace.arrived(at(clock), count);
                    left.arrived(at(clock), done + count);
                    for step in done + 1..=done + count {
                        if step % self.log_every == 0 && step * 10 > extent.steps {
                            said.push((clock, left.rest(extent).expect("a pace")));
                        }
                    }
                    done += count;
                }
                if done.is_multiple_of(extent.per_epoch) {
                    let first = done == extent.per_epoch;
                    let evaluation = if first { self.first_evaluation } else { self.evaluation };
                    left.evaluated(Duration::from_secs_f64(evaluation));
                    clock += evaluation;
                }
            }
            let count = said.len();
            let off = said
                .into_iter()
                .map(|(then, rest)| (clock - then, rest.as_secs_f64()))
                .filter(|(truth, _)| *truth >= 0.1)
                .map(|(truth, rest)| (rest - truth).abs() / truth);
            (off.fold(0.0, f64::max), count)
        }
    }

    #[test]
    fn after_the_first_tenth_what_is_left_is_right_within_a_fifth() {
        let usual = Trace {
            extent: (400, 4000),
            log_every: 50,
            compiling: 3.0,
            submission: 0.002,
            step: 0.001,
            evaluation: 0.05,
            first_evaluation: 0.09,
        };
        let traces = [
            // 4 s: the first submissions of a step each are a good part of the first tenth.
            usual,
            // Evaluations that take as long as a third of an epoch.
            Trace { evaluation: 0.15, first_evaluation: 0.2, ..usual },
            // A slow compiler and a short run.
            Trace {
                compiling: 30.0,
                extent: (100, 1000),
                log_every: 10,
                evaluation: 0.01,
                first_evaluation: 0.014,
                ..usual
            },
            // Steps that are submissions of their own, and a last epoch that is not full.
            Trace { step: 0.3, submission: 0.01, extent: (60, 510), log_every: 7, evaluation: 2.0, ..usual },
            // Three epochs: for the first third no evaluation has been seen.
            Trace { extent: (2000, 6000), evaluation: 0.3, first_evaluation: 0.35, ..usual },
            // One epoch, no evaluation before the end.
            Trace { extent: (20_000, 20_000), evaluation: 0.0, first_evaluation: 0.0, ..usual },
            // Long.
            Trace { extent: (469, 46_900), log_every: 100, evaluation: 0.2, first_evaluation: 1.5, ..usual },
        ];
        for trace in traces {
            for seed in 0..5 {
                let (worst, reports) = trace.worst(seed);
                println!("{worst:.3} in {reports} reports");
                assert!(reports >= 60, "{reports} reports of {trace:?}");
                assert!(worst <= 0.2, "{worst} in {trace:?}, seed {seed}");
            }
        }
    }

    #[test]
    fn nothing_is_said_before_the_second_arrival() {
        let (mut left, now) = (Left::default(), Instant::now());
        let extent = Extent { per_epoch: 1000, steps: 900 };
        assert_eq!(left.rest(extent), None);
        left.arrived(now, 10);
        assert_eq!(left.rest(extent), None);
        // 90 steps took 9 s, 800 are left.
        left.arrived(now + Duration::from_secs(9), 100);
        assert_eq!(left.rest(extent), Some(Duration::from_secs(80)));
    }
}
