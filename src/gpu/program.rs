//! A closed plan: encoded into one pass many times, traced dispatch by dispatch, timed.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::pipeline::Pipeline;
use crate::gpu::tensor::{Tensor, staging};

/// Steps that one submission can hold: the length of the ring of slots.
pub const SLOTS: u32 = 64;
/// The largest uniform offset alignment that WebGPU allows a device to ask for, in bytes.
pub(super) const UNIFORM_ALIGN: usize = 256;

/// The least that a dispatch must compute and move.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes, each operand read once and each result written once.
    pub bytes: f64,
}

impl Work {
    /// `elements` 32-bit values moved, `flops` operations.
    pub fn new(flops: usize, elements: usize) -> Self {
        Self { flops: flops as f64, bytes: 4.0 * elements as f64 }
    }
}

pub(super) struct Dispatch {
    pub(super) label: String,
    pub(super) kernel: &'static str,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) group: wgpu::BindGroup,
    pub(super) grid: [u32; 3],
    pub(super) work: Work,
    pub(super) slotted: bool,
    pub(super) written: Vec<Tensor>,
}

impl Dispatch {
    fn encode(&self, pass: &mut wgpu::ComputePass<'_>, slot: u32) {
        self.encode_part(pass, slot, self.grid[0]);
    }

    /// Only the first `width` workgroups in x.
    fn encode_part(&self, pass: &mut wgpu::ComputePass<'_>, slot: u32, width: u32) {
        pass.set_pipeline(&self.pipeline.raw);
        if self.slotted {
            pass.set_bind_group(0, &self.group, &[slot * UNIFORM_ALIGN as u32]);
        } else {
            pass.set_bind_group(0, &self.group, &[]);
        }
        pass.dispatch_workgroups(self.grid[0].min(width), self.grid[1], self.grid[2]);
    }
}

/// What one dispatch wrote: its label and, for each written tensor, the whole span as bits.
pub struct Traced {
    /// The dispatch.
    pub label: String,
    /// Tensor label and contents.
    pub outputs: Vec<(String, Vec<u32>)>,
}

/// A part of a submission; the parts run one after the other.
#[derive(Clone)]
pub enum Part<'a> {
    /// A program, once for each of these slots.
    Run(&'a Program, Range<u32>),
    /// A program whose dispatches have a workgroup in x for each slot, once, for the first so many.
    Fold(&'a Program, u32),
    /// Zeros over the whole of a tensor.
    Clear(&'a Tensor),
}

impl Part<'_> {
    pub(super) fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        match self {
            Self::Run(program, slots) => program.encode(encoder, slots.clone()),
            Self::Fold(program, slots) => {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                program.dispatches.iter().for_each(|d| d.encode_part(&mut pass, 0, *slots));
            }
            Self::Clear(t) => {
                encoder.clear_buffer(&t.buffer, (t.offset * 4) as u64, Some((t.span() * 4) as u64));
            }
        }
    }
}

/// A closed plan.
pub struct Program {
    pub(super) dispatches: Vec<Dispatch>,
}

impl Program {
    /// Number of dispatches in one run of the program.
    pub fn len(&self) -> usize {
        self.dispatches.len()
    }

    /// True for a program that does nothing.
    pub fn is_empty(&self) -> bool {
        self.dispatches.is_empty()
    }

    /// Label, kernel and least work of each dispatch, in order.
    pub fn dispatches(&self) -> impl Iterator<Item = (&str, &'static str, Work)> {
        self.dispatches.iter().map(|d| (d.label.as_str(), d.kernel, d.work))
    }

    /// Encodes one run for each slot into one pass.
    ///
    /// # Panics
    /// Where a slot is not below [`SLOTS`].
    fn encode(&self, encoder: &mut wgpu::CommandEncoder, slots: Range<u32>) {
        assert!(slots.end <= SLOTS);
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for slot in slots {
            for d in &self.dispatches {
                d.encode(&mut pass, slot);
            }
        }
    }

    /// Runs the program `steps` times in one submission, without waiting.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost.
    pub fn submit(&self, gpu: &Gpu, steps: u32) -> Result<()> {
        gpu.check()?;
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        self.encode(&mut encoder, 0..steps);
        gpu.queue.submit([encoder.finish()]);
        Ok(())
    }

    /// Runs the program once, a dispatch at a time, and copies out everything that each one wrote,
    /// so that the first that leaves the reference can be named.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or refuses.
    pub fn trace_blocking(&self, gpu: &Gpu) -> Result<Vec<Traced>> {
        gpu.check()?;
        self.dispatches
            .iter()
            .map(|d| {
                let mut encoder = gpu.device.create_command_encoder(&Default::default());
                d.encode(&mut encoder.begin_compute_pass(&Default::default()), 0);
                gpu.queue.submit([encoder.finish()]);
                let outputs = d
                    .written
                    .iter()
                    .map(|t| Ok((t.label.clone(), t.read_padded_blocking::<u32>(gpu)?)))
                    .collect::<Result<_>>()?;
                Ok(Traced { label: d.label.clone(), outputs })
            })
            .collect()
    }

    /// Times `runs` runs in one submission, in seconds: by timestamps around the pass, or by the
    /// host's clock around submission and wait where the device has none.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or refuses.
    pub fn time_blocking(&self, gpu: &Gpu, runs: u32) -> Result<f64> {
        if !gpu.report.timestamps {
            gpu.wait_blocking()?;
            let began = std::time::Instant::now();
            self.submit(gpu, runs)?;
            gpu.wait_blocking()?;
            return Ok(began.elapsed().as_secs_f64());
        }
        let watch = Stopwatch::new(gpu, 1)?;
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("timed"),
            timestamp_writes: watch.around(0),
        });
        for slot in 0..runs {
            self.dispatches.iter().for_each(|d| d.encode(&mut pass, slot % SLOTS));
        }
        drop(pass);
        let spans = watch.read_blocking(gpu, encoder)?;
        Ok(spans[0] * 1e-9)
    }

    /// Times each dispatch by pass timestamps over one run, in nanoseconds; `None` where the
    /// device has no timestamps.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or refuses.
    pub fn profile_blocking(&self, gpu: &Gpu) -> Result<Option<Vec<f64>>> {
        gpu.check()?;
        if !gpu.report.timestamps {
            return Ok(None);
        }
        let watch = Stopwatch::new(gpu, self.dispatches.len() as u32)?;
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        for (i, d) in self.dispatches.iter().enumerate() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some(&d.label),
                timestamp_writes: watch.around(i as u32),
            });
            d.encode(&mut pass, 0);
        }
        let spans = watch.read_blocking(gpu, encoder)?;
        Ok(Some(spans))
    }
}

/// Pairs of timestamps around passes.
struct Stopwatch {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    pairs: u32,
}

impl Stopwatch {
    fn new(gpu: &Gpu, pairs: u32) -> Result<Self> {
        let bytes = u64::from(pairs.max(1)) * 16;
        gpu.guarded("time", || Self {
            queries: gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("stopwatch"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * pairs.max(1),
            }),
            resolved: gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("stopwatch"),
                size: bytes,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            staging: staging(gpu, bytes),
            pairs,
        })
    }

    fn around(&self, pair: u32) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(2 * pair),
            end_of_pass_write_index: Some(2 * pair + 1),
        })
    }

    /// Submits what was encoded, waits, and gives each pair's nanoseconds.
    fn read_blocking(&self, gpu: &Gpu, mut encoder: wgpu::CommandEncoder) -> Result<Vec<f64>> {
        encoder.resolve_query_set(&self.queries, 0..2 * self.pairs, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, self.staging.size());
        let done = gpu.queue.submit([encoder.finish()]);
        self.staging.map_async(wgpu::MapMode::Read, .., |_| {});
        gpu.wait(Some(done))?;
        let view = self.staging.get_mapped_range(..).map_err(|e| Error::device("time", e.to_string()))?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&view);
        let period = f64::from(gpu.queue.get_timestamp_period());
        Ok(ticks.chunks_exact(2).map(|t| t[1].saturating_sub(t[0]) as f64 * period).collect())
    }
}
