//! A closed plan: encoded many times, by wgpu or past it, traced dispatch by dispatch, timed.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::direct;
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

/// A dispatch's pipeline with what is bound to it, for the one or the other way of encoding it.
pub(crate) enum Bound {
    /// By wgpu.
    Tracked(wgpu::ComputePipeline, wgpu::BindGroup),
    /// Past it.
    Direct(direct::Bound),
}

pub(super) struct Dispatch {
    pub(super) label: String,
    pub(super) kernel: &'static str,
    pub(super) bound: Bound,
    pub(super) grid: [u32; 3],
    pub(super) work: Work,
    pub(super) slotted: bool,
    /// Whether what one before it in the same run does has to be done first.
    pub(super) waits: bool,
    pub(super) written: Vec<Tensor>,
}

impl Dispatch {
    /// Calls `with` with the offset that the slot's uniform is bound at, if there is one.
    pub(super) fn at_slot(&self, slot: u32, with: impl FnOnce(&[u32])) {
        let offset = [slot * UNIFORM_ALIGN as u32];
        with(&offset[..usize::from(self.slotted)]);
    }

    /// The workgroups, of those in x only the first `width`.
    pub(super) fn workgroups(&self, width: u32) -> [u32; 3] {
        let [x, y, z] = self.grid;
        [x.min(width), y, z]
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
pub struct Part<'a>(Piece<'a>);

#[derive(Clone)]
pub(super) enum Piece<'a> {
    /// Dispatches in order, once for each of these slots, of each the first `width` workgroups in x.
    Run { dispatches: &'a [Dispatch], slots: Range<u32>, width: u32 },
    /// Zeros over the whole of a tensor.
    Clear(&'a Tensor),
}

impl<'a> Part<'a> {
    /// A program, once for each of these slots.
    pub fn run(program: &'a Program, slots: Range<u32>) -> Self {
        Self(Piece::all(&program.dispatches, slots))
    }

    /// A program whose dispatches have a workgroup in x for each slot, once, for the first so many.
    pub fn fold(program: &'a Program, slots: u32) -> Self {
        Self(Piece::Run { dispatches: &program.dispatches, slots: 0..1, width: slots })
    }

    /// Zeros over the whole of a tensor that a program of the same submission has bound.
    pub fn clear(tensor: &'a Tensor) -> Self {
        Self(Piece::Clear(tensor))
    }
}

impl<'a> Piece<'a> {
    fn all(dispatches: &'a [Dispatch], slots: Range<u32>) -> Self {
        assert!(slots.end <= SLOTS);
        Self::Run { dispatches, slots, width: u32::MAX }
    }

    /// By wgpu, in passes with these timestamps.
    fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        stamps: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        match self {
            Self::Run { dispatches, slots, width } => {
                let desc = wgpu::ComputePassDescriptor { label: None, timestamp_writes: stamps };
                let mut pass = encoder.begin_compute_pass(&desc);
                for slot in slots.clone() {
                    for d in *dispatches {
                        let Bound::Tracked(pipeline, group) = &d.bound else {
                            unreachable!("a device goes by wgpu or past it, with all it does")
                        };
                        pass.set_pipeline(pipeline);
                        d.at_slot(slot, |offset| pass.set_bind_group(0, group, offset));
                        let [x, y, z] = d.workgroups(*width);
                        pass.dispatch_workgroups(x, y, z);
                    }
                }
            }
            Self::Clear(t) => {
                encoder.clear_buffer(&t.buffer, (t.offset * 4) as u64, Some((t.span() * 4) as u64));
            }
        }
    }
}

/// Encodes parts, which run one after the other.
///
/// # Errors
/// [`Error::Device`] where the device is lost.
pub(super) fn encode(gpu: &Gpu, parts: &[Part<'_>]) -> Result<wgpu::CommandBuffer> {
    gpu.check()?;
    let pieces: Vec<_> = parts.iter().map(|part| &part.0).collect();
    if gpu.is_direct() {
        return direct::encode(gpu, &pieces);
    }
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    pieces.iter().for_each(|piece| piece.encode(&mut encoder, None));
    Ok(encoder.finish())
}

/// A closed plan. Dropping it waits for the device where that may still be at it.
pub struct Program {
    pub(super) dispatches: Vec<Dispatch>,
    /// The device that may still be at them, where wgpu does not know of it.
    pub(super) direct: Option<wgpu::Device>,
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.direct.as_ref().is_some_and(|device| !direct::at_rest(device)) {
            std::mem::forget(std::mem::take(&mut self.dispatches));
        }
    }
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

    /// Each dispatch as a part of its own, for slot 0.
    fn alone(&self) -> impl Iterator<Item = (&Dispatch, Part<'_>)> {
        self.dispatches.iter().map(|d| (d, Part(Piece::all(std::slice::from_ref(d), 0..1))))
    }

    /// A planted fault: from now on no dispatch waits for another.
    #[cfg(test)]
    pub(crate) fn forget_barriers(&mut self) {
        self.dispatches.iter_mut().for_each(|d| d.waits = false);
    }

    /// Runs the program `steps` times in one submission, without waiting.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost.
    ///
    /// # Panics
    /// Where `steps` is above [`SLOTS`].
    pub fn submit(&self, gpu: &Gpu, steps: u32) -> Result<()> {
        gpu.queue.submit([encode(gpu, &[Part::run(self, 0..steps)])?]);
        Ok(())
    }

    /// Runs the program once, a dispatch at a time, and copies out everything that each one wrote,
    /// so that the first that leaves the reference can be named.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or refuses.
    pub fn trace_blocking(&self, gpu: &Gpu) -> Result<Vec<Traced>> {
        self.alone()
            .map(|(d, part)| {
                gpu.queue.submit([encode(gpu, &[part])?]);
                let outputs = d
                    .written
                    .iter()
                    .map(|t| Ok((t.label.clone(), t.read_padded_blocking::<u32>(gpu)?)))
                    .collect::<Result<_>>()?;
                Ok(Traced { label: d.label.clone(), outputs })
            })
            .collect()
    }

    /// Times `runs` runs in one submission, in seconds: by the device's timestamps, or by the
    /// host's clock around submission and wait where it has none.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or refuses.
    pub fn time_blocking(&self, gpu: &Gpu, runs: u32) -> Result<f64> {
        let parts: Vec<_> = (0..runs)
            .step_by(SLOTS as usize)
            .map(|first| Part::run(self, 0..SLOTS.min(runs - first)))
            .collect();
        if !gpu.report.timestamps {
            gpu.wait_blocking()?;
            let began = std::time::Instant::now();
            gpu.queue.submit([encode(gpu, &parts)?]);
            gpu.wait_blocking()?;
            return Ok(began.elapsed().as_secs_f64());
        }
        Ok(1e-9 * time_blocking(gpu, &parts)?.iter().sum::<f64>())
    }

    /// Times each dispatch by timestamps over one run, in nanoseconds; `None` where the
    /// device has no timestamps.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or refuses.
    pub fn profile_blocking(&self, gpu: &Gpu) -> Result<Option<Vec<f64>>> {
        gpu.check()?;
        if !gpu.report.timestamps {
            return Ok(None);
        }
        let parts: Vec<_> = self.alone().map(|(_, part)| part).collect();
        time_blocking(gpu, &parts).map(Some)
    }
}

/// Submits parts, waits, and gives the nanoseconds that each took by the device's timestamps.
fn time_blocking(gpu: &Gpu, parts: &[Part<'_>]) -> Result<Vec<f64>> {
    gpu.check()?;
    let pieces: Vec<_> = parts.iter().map(|part| &part.0).collect();
    let ticks = match gpu.is_direct() {
        true => direct::time_blocking(gpu, &pieces)?,
        false => Stopwatch::new(gpu, pieces.len())?.time_blocking(gpu, &pieces)?,
    };
    let period = f64::from(gpu.queue.get_timestamp_period());
    Ok(ticks.into_iter().map(|ticks| ticks as f64 * period).collect())
}

/// Pairs of timestamps, one around each of some passes.
struct Stopwatch {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    pairs: u32,
}

impl Stopwatch {
    fn new(gpu: &Gpu, pairs: usize) -> Result<Self> {
        let bytes = pairs.max(1) as u64 * 16;
        gpu.guarded("time", || Self {
            queries: gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("stopwatch"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * pairs.max(1) as u32,
            }),
            resolved: gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("stopwatch"),
                size: bytes,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            staging: staging(gpu, bytes),
            pairs: pairs as u32,
        })
    }

    /// Encodes pieces, a pair around each, submits, waits, and gives the ticks from one to the other of each pair.
    fn time_blocking(&self, gpu: &Gpu, pieces: &[&Piece<'_>]) -> Result<Vec<u64>> {
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        for (i, piece) in (0..).zip(pieces) {
            let stamps = wgpu::ComputePassTimestampWrites {
                query_set: &self.queries,
                beginning_of_pass_write_index: Some(2 * i),
                end_of_pass_write_index: Some(2 * i + 1),
            };
            piece.encode(&mut encoder, Some(stamps));
        }
        encoder.resolve_query_set(&self.queries, 0..2 * self.pairs, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, self.staging.size());
        let done = gpu.queue.submit([encoder.finish()]);
        self.staging.map_async(wgpu::MapMode::Read, .., |_| {});
        gpu.wait(Some(done))?;
        let view = self.staging.get_mapped_range(..).map_err(|e| Error::device("time", e.to_string()))?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&view);
        Ok(ticks.chunks_exact(2).map(|t| t[1].saturating_sub(t[0])).collect())
    }
}
