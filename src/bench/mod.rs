//! The benchmark harness behind `limbeck bench` and `benches/`: how fast kernels and the step are,
//! beside what the device can do at best.
//!
//! Every measurement checks its result against the reference first, warms up, then repeats; times
//! are the device's own where it has timestamps. Peaks are measured in the same run, so that the
//! fractions hold on a machine that is busy or throttled.

pub mod head;
pub mod matmul;
pub mod peak;
pub mod step;
pub mod tune;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Program};
use crate::reference::{self, Bounded};

/// A measurement; what does not apply is absent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// `peak`, `matmul`, `head` or `step`.
    pub bench: Cow<'static, str>,
    /// Kernel variant.
    pub variant: String,
    /// The shape's name.
    pub shape: String,
    /// Median over the repeats.
    pub median_ms: f64,
    /// Fastest repeat.
    pub min_ms: f64,
    /// Slowest repeat.
    pub max_ms: f64,
    /// Floating-point operations per second, in 1e9, at the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gflops: Option<f64>,
    /// Bytes that must move per second, in 1e9, at the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gbps: Option<f64>,
    /// Of the FMA peak measured in this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction_of_peak: Option<f64>,
    /// Of the copy bandwidth measured in this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction_of_copy: Option<f64>,
    /// Speed over the plain variant on the same shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_to_plain: Option<f64>,
    /// Training steps per second, of all replicas together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_per_second: Option<f64>,
    /// Microseconds of the host's thread for each dispatch of a step: scalars, encoding, submission.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_us_per_dispatch: Option<f64>,
    /// FLOPs over (time x the 1024^3 rate): how much of a step is matrix product at full speed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction_of_matmul: Option<f64>,
    /// Of a step: how many devices share its students.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<usize>,
}

/// Median, fastest and slowest repeat, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The middle one.
    pub median: f64,
    /// The fastest.
    pub min: f64,
    /// The slowest.
    pub max: f64,
}

/// Repeats per measurement.
const REPEATS: usize = 7;
/// A repeat runs the work as often as fills this time, so that clocks and submissions do not count.
const REPEAT_SECONDS: f64 = 0.05;

/// Times one run of `program`.
///
/// # Errors
/// [`Error::Device`] where the device is lost.
pub fn time(gpu: &Gpu, program: &Program) -> Result<Times> {
    time_within(gpu, program, f64::INFINITY)
}

/// As [`time`], but where a run takes more than `most` seconds, one is enough.
fn time_within(gpu: &Gpu, program: &Program, most: f64) -> Result<Times> {
    // The first run compiles the pipeline; the second says how many fill a repeat.
    program.time_blocking(gpu, 1)?;
    let once = program.time_blocking(gpu, 1)?;
    if once > most {
        return Ok(Times::of(vec![once]));
    }
    let runs = (REPEAT_SECONDS / once.max(1e-7)).ceil().clamp(1.0, 10_000.0) as u32;
    let runs = if once > REPEAT_SECONDS { 1 } else { runs };
    program.time_blocking(gpu, runs)?;
    let mut seconds = Vec::new();
    for _ in 0..REPEATS {
        seconds.push(program.time_blocking(gpu, runs)? / f64::from(runs));
    }
    Ok(Times::of(seconds))
}

impl Times {
    /// Sorts and picks.
    pub fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self { median: seconds[seconds.len() / 2], min: seconds[0], max: seconds[seconds.len() - 1] }
    }

    /// A record with these times and rates.
    pub fn record(&self, bench: &'static str, variant: &str, shape: &str, flops: f64, bytes: f64) -> Record {
        let rate = |work: f64| (work > 0.0).then(|| work / self.median * 1e-9);
        Record {
            bench: bench.into(),
            variant: variant.to_owned(),
            shape: shape.to_owned(),
            median_ms: self.median * 1e3,
            min_ms: self.min * 1e3,
            max_ms: self.max * 1e3,
            gflops: rate(flops),
            gbps: rate(bytes),
            ..Record::default()
        }
    }
}

/// Fails where a result that is about to be timed is wrong.
fn hold(what: &str, device: &[f32], expected: &Bounded, n: usize) -> Result<()> {
    let worst = reference::worst(device, expected, n);
    match worst.passes() {
        true => Ok(()),
        false => Err(Error::Run(format!(
            "{what}: element {} is {:e}, the reference says {:e} ({:.1} times the bound); `limbeck doctor` says more",
            worst.index, worst.got, worst.expected, worst.ratio
        ))),
    }
}

/// Uniform values in [-1, 1), a pure function of the seed.
fn values(seed: u64, count: usize) -> Vec<f32> {
    use crate::rng::{stream, uniform};
    (0..count as u64).map(|i| 2.0 * uniform(seed, stream::INIT, i) - 1.0).collect()
}
