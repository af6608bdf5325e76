//! A closed plan: encoded many times, traced dispatch by dispatch, timed.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::image::Image;
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
    pub(super) images: Vec<Arc<Image>>,
}

/// Dispatches in passes as long as can be: only a copy stands between two.
struct Passes<'e> {
    encoder: &'e mut wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
}

impl<'e> Passes<'e> {
    fn new(encoder: &'e mut wgpu::CommandEncoder) -> Self {
        Self { encoder, pass: None }
    }

    fn copy(&mut self, image: &Image) {
        self.pass = None;
        image.follow(self.encoder);
    }

    fn pass(&mut self) -> &mut wgpu::ComputePass<'static> {
        let encoder = &mut *self.encoder;
        self.pass.get_or_insert_with(|| encoder.begin_compute_pass(&Default::default()).forget_lifetime())
    }
}

impl Dispatch {
    fn encode(&self, passes: &mut Passes<'_>, slot: u32) {
        self.encode_part(passes, slot, self.grid[0]);
    }

    /// Only the first `width` workgroups in x.
    fn encode_part(&self, passes: &mut Passes<'_>, slot: u32, width: u32) {
        for image in self.images.iter().filter(|image| image.is_behind()) {
            passes.copy(image);
        }
        let pass = passes.pass();
        pass.set_pipeline(&self.pipeline.raw);
        if self.slotted {
            pass.set_bind_group(0, &self.group, &[slot * UNIFORM_ALIGN as u32]);
        } else {
            pass.set_bind_group(0, &self.group, &[]);
        }
        pass.dispatch_workgroups(self.grid[0].min(width), self.grid[1], self.grid[2]);
        self.written.iter().for_each(Tensor::changed);
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
                let mut passes = Passes::new(encoder);
                program.dispatches.iter().for_each(|d| d.encode_part(&mut passes, 0, *slots));
            }
            Self::Clear(t) => {
                t.changed();
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

    /// Encodes one run for each slot.
    ///
    /// # Panics
    /// Where a slot is not below [`SLOTS`].
    fn encode(&self, encoder: &mut wgpu::CommandEncoder, slots: Range<u32>) {
        assert!(slots.end <= SLOTS);
        let mut passes = Passes::new(encoder);
        for slot in slots {
            for d in &self.dispatches {
                d.encode(&mut passes, slot);
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
                d.encode(&mut Passes::new(&mut encoder), 0);
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

    /// Times `runs` runs in one submission, in seconds: by timestamps around them, or by the host's clock around
    /// submission and wait where the device has none. Each run copies its images anew, as where every step
    /// brings other operands.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or refuses.
    pub fn time_blocking(&self, gpu: &Gpu, runs: u32) -> Result<f64> {
        if !gpu.report.timestamps {
            gpu.wait_blocking()?;
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            self.encode_anew(&mut Passes::new(&mut encoder), runs);
            let began = std::time::Instant::now();
            gpu.queue.submit([encoder.finish()]);
            gpu.wait_blocking()?;
            return Ok(began.elapsed().as_secs_f64());
        }
        let watch = Stopwatch::new(gpu, 1)?;
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        watch.time(0, &mut encoder, &self.dispatches, |passes| self.encode_anew(passes, runs));
        let spans = watch.read_blocking(gpu, encoder)?;
        Ok(spans[0] * 1e-9)
    }

    fn encode_anew(&self, passes: &mut Passes<'_>, runs: u32) {
        for slot in 0..runs {
            self.dispatches.iter().flat_map(|d| &d.images).for_each(|image| image.forget());
            self.dispatches.iter().for_each(|d| d.encode(passes, slot % SLOTS));
        }
    }

    /// Times each dispatch, the copies that it needs included, by timestamps over one run, in nanoseconds;
    /// `None` where the device has no timestamps.
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
            watch.time(i as u32, &mut encoder, [d], |passes| d.encode(passes, 0));
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

    /// Encodes the dispatches in `what` between the two timestamps of a pair: those of one pass, or where copies
    /// may split it, of two empty ones around it.
    fn time<'d>(
        &self,
        pair: u32,
        encoder: &mut wgpu::CommandEncoder,
        dispatches: impl IntoIterator<Item = &'d Dispatch>,
        what: impl FnOnce(&mut Passes<'_>),
    ) {
        let (begins, ends) = (Some(2 * pair), Some(2 * pair + 1));
        let begin = |encoder: &mut wgpu::CommandEncoder, begins: Option<u32>, ends: Option<u32>| {
            let desc = wgpu::ComputePassDescriptor {
                label: Some("timed"),
                timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                    query_set: &self.queries,
                    beginning_of_pass_write_index: begins,
                    end_of_pass_write_index: ends,
                }),
            };
            encoder.begin_compute_pass(&desc).forget_lifetime()
        };
        if dispatches.into_iter().all(|d| d.images.is_empty()) {
            let pass = Some(begin(encoder, begins, ends));
            what(&mut Passes { encoder, pass });
        } else {
            drop(begin(encoder, begins, None));
            what(&mut Passes::new(encoder));
            drop(begin(encoder, None, ends));
        }
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
