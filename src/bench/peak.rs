//! FMA throughput and copy bandwidth.

use crate::bench::{Record, Times, time};
use crate::error::Result;
use crate::gpu::{Gpu, Plan, Tensor};
use crate::kernels::peak;

/// The device's best, measured now.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// Floating-point operations per second.
    pub flops: f64,
    /// Bytes per second, read and written together.
    pub bytes: f64,
}

/// Measures both and gives the records behind them.
///
/// # Errors
/// [`crate::Error::Device`] where the device is lost or has no memory.
pub fn measure(gpu: &Gpu) -> Result<(Peak, Vec<Record>)> {
    let mut records = Vec::new();
    // Enough invocations for every lane of a large GPU; a software driver needs few.
    let invocations = if gpu.report.kind == "software" { 1 << 10 } else { 1 << 18 };
    let result = Tensor::zeros(gpu, "peak.result", [1, 1, invocations])?;
    for workgroup in peak::WORKGROUPS {
        let mut plan = Plan::new(gpu);
        let flops = peak::record_fma(&mut plan, workgroup, 256, &result)?;
        let times = time(gpu, &plan.finish()?)?;
        records.push(times.record("peak", &format!("fma-{workgroup}"), "8 x vec4", flops, 0.0));
    }
    // Larger than any cache that matters, within the smallest binding.
    let shape = [1, 1, 24 << 20];
    let source = Tensor::zeros(gpu, "peak.source", shape)?;
    let copy = Tensor::zeros(gpu, "peak.copy", shape)?;
    let mut plan = Plan::new(gpu);
    let bytes = peak::record_copy(&mut plan, &source, &copy)?;
    let times: Times = time(gpu, &plan.finish()?)?;
    records.push(times.record("peak", "copy", "96 MiB", 0.0, bytes));
    let best = |f: fn(&Record) -> Option<f64>| records.iter().filter_map(f).fold(0.0, f64::max) * 1e9;
    let peak = Peak { flops: best(|r| r.gflops), bytes: best(|r| r.gbps) };
    Ok((peak, records))
}
