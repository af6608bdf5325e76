//! The step is data: dispatches recorded once, checked then, encoded into one pass many times.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::pipeline::{Access, Constants, Kernel, Pipeline, SLOT};
use crate::gpu::tensor::{Tensor, staging};

/// Steps that one submission can hold: the length of the ring of slots.
pub const SLOTS: u32 = 64;
/// The largest uniform offset alignment that WebGPU allows a device to ask for, in bytes.
const UNIFORM_ALIGN: usize = 256;

/// One dispatch, as a kernel's `record` describes it.
pub struct Call<'a, P> {
    /// Which kernel.
    pub kernel: &'static Kernel,
    /// With which constants.
    pub constants: Constants,
    /// The name in traces, errors and profiles, such as `student.l2.matmul`.
    pub label: &'a str,
    /// The uniform named `params`.
    pub params: P,
    /// Tensors by the names that the shader gives its bindings.
    pub tensors: &'a [(&'a str, &'a Tensor)],
    /// Workgroups in x, y, z.
    pub grid: [u32; 3],
    /// What the dispatch has to do at least: the floor in profiles.
    pub work: Work,
}

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

struct Recorded {
    label: String,
    kernel: &'static str,
    pipeline: Arc<Pipeline>,
    params: Vec<u8>,
    tensors: Vec<(String, Tensor)>,
    grid: [u32; 3],
    work: Work,
}

/// Dispatches under construction.
pub struct Plan<'g> {
    /// The device that the plan is for.
    pub gpu: &'g Gpu,
    recorded: Vec<Recorded>,
}

impl<'g> Plan<'g> {
    /// An empty plan.
    pub fn new(gpu: &'g Gpu) -> Self {
        Self { gpu, recorded: Vec::new() }
    }

    /// Records one dispatch.
    ///
    /// # Errors
    /// [`Error::Device`] where the grid or a binding exceeds the device's limits, where one memory
    /// range would be written and used twice by the dispatch, or where the kernel does not build.
    ///
    /// # Panics
    /// Where a binding of the shader got no tensor or a tensor has no binding: our own bug.
    pub fn dispatch<P: bytemuck::Pod>(&mut self, call: Call<'_, P>) -> Result<()> {
        self.gpu.check()?;
        if call.grid.contains(&0) {
            return Ok(()); // nothing to compute
        }
        let op = || format!("record `{}`", call.label);
        let limits = &self.gpu.limits;
        if let Some(n) = call.grid.iter().find(|n| **n > limits.max_compute_workgroups_per_dimension) {
            return Err(Error::device(
                op(),
                format!(
                    "wanted {n} workgroups in one dimension, the device's limit is {}",
                    limits.max_compute_workgroups_per_dimension
                ),
            ));
        }
        let pipeline = self.gpu.pipeline(call.kernel, &call.constants)?;
        let bindings = &pipeline.reflection.bindings;
        for (name, _) in call.tensors {
            assert!(
                bindings.iter().any(|b| b.name == *name),
                "{}: the shader has no binding `{name}`",
                call.kernel.name
            );
        }
        let mut tensors = Vec::new();
        for binding in bindings.iter().filter(|b| b.access != Access::Uniform) {
            let (_, tensor) = call
                .tensors
                .iter()
                .find(|(name, _)| *name == binding.name)
                .unwrap_or_else(|| panic!("{}: `{}` is not bound", call.kernel.name, binding.name));
            let bytes = (tensor.span() * 4) as u64;
            // Shaders count elements in 32 bits; some devices bind more bytes than that reaches.
            let limit = limits.max_storage_buffer_binding_size.min(u64::from(u32::MAX) * 4);
            if bytes > limit {
                return Err(Error::device(
                    op(),
                    format!(
                        "`{}` is {bytes} bytes, the device lets a shader see {limit} bytes at once",
                        tensor.label
                    ),
                )
                .with_hint("use smaller layers, a smaller batch or fewer replicas"));
            }
            tensors.push((binding, (*tensor).clone()));
        }
        for (i, (binding, tensor)) in tensors.iter().enumerate() {
            if binding.access != Access::ReadWrite {
                continue;
            }
            for (j, (other_binding, other)) in tensors.iter().enumerate() {
                if i != j && conflict(tensor, other, other_binding.access) {
                    return Err(Error::device(
                        op(),
                        format!(
                            "`{}` is written as `{}` and used as `{}` in one dispatch",
                            tensor.label, binding.name, other_binding.name
                        ),
                    ));
                }
            }
        }
        let tensors = tensors.into_iter().map(|(b, t)| (b.name.clone(), t)).collect();
        self.recorded.push(Recorded {
            label: call.label.to_owned(),
            kernel: call.kernel.name,
            pipeline,
            params: bytemuck::bytes_of(&call.params).to_vec(),
            tensors,
            grid: call.grid,
            work: call.work,
        });
        Ok(())
    }

    /// Uploads the parameters, makes the bind groups and closes the plan.
    ///
    /// # Errors
    /// [`Error::Device`] where the device refuses.
    pub fn finish(self) -> Result<Program> {
        let gpu = self.gpu;
        let mut bytes = Vec::new();
        for d in &self.recorded {
            bytes.extend_from_slice(&d.params);
            bytes.resize(bytes.len().next_multiple_of(UNIFORM_ALIGN), 0);
        }
        let mut slots = vec![0u8; SLOTS as usize * UNIFORM_ALIGN];
        for s in 0..SLOTS {
            slots[s as usize * UNIFORM_ALIGN..][..4].copy_from_slice(&s.to_ne_bytes());
        }
        let (params, slots) = gpu.guarded("finish plan", || {
            (uniform_buffer(gpu, "params", &bytes), uniform_buffer(gpu, "slots", &slots))
        })?;
        let mut at = 0;
        let dispatches = self
            .recorded
            .into_iter()
            .map(|d| {
                let offset = at;
                at += d.params.len().next_multiple_of(UNIFORM_ALIGN) as u64;
                finish_dispatch(gpu, d, &params, offset, &slots)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Program { dispatches })
    }
}

fn uniform_buffer(gpu: &Gpu, label: &str, bytes: &[u8]) -> wgpu::Buffer {
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes.len().max(UNIFORM_ALIGN) as u64,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu.queue.write_buffer(&buffer, 0, bytes);
    buffer
}

fn finish_dispatch(
    gpu: &Gpu,
    d: Recorded,
    params: &wgpu::Buffer,
    params_offset: u64,
    slots: &wgpu::Buffer,
) -> Result<Dispatch> {
    let bindings = &d.pipeline.reflection.bindings;
    let buffer = |buffer, offset: u64, bytes: u64| {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer,
            offset,
            size: std::num::NonZeroU64::new(bytes),
        })
    };
    let entries: Vec<_> = bindings
        .iter()
        .map(|b| {
            let resource = match (b.access, b.name.as_str()) {
                (Access::Uniform, SLOT) => buffer(slots, 0, 16),
                (Access::Uniform, _) => {
                    buffer(params, params_offset, d.params.len().next_multiple_of(16) as u64)
                }
                _ => {
                    let (_, t) = &d.tensors.iter().find(|(n, _)| *n == b.name).expect("bound at recording");
                    buffer(&t.buffer, (t.offset * 4) as u64, (t.span().max(4) * 4) as u64)
                }
            };
            wgpu::BindGroupEntry { binding: b.index, resource }
        })
        .collect();
    let group = gpu.guarded(&format!("bind `{}`", d.label), || {
        gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&d.label),
            layout: &d.pipeline.layout,
            entries: &entries,
        })
    })?;
    let written = bindings
        .iter()
        .filter(|b| b.access == Access::ReadWrite)
        .filter_map(|b| d.tensors.iter().find(|(n, _)| *n == b.name))
        .map(|(_, t)| t.clone())
        .collect();
    Ok(Dispatch {
        label: d.label,
        kernel: d.kernel,
        slotted: bindings.iter().any(|b| b.name == SLOT),
        pipeline: d.pipeline,
        group,
        grid: d.grid,
        work: d.work,
        written,
    })
}

/// Whether `written` and `other`, bound to the same dispatch, would meet in memory.
///
/// wgpu itself refuses one buffer as read and read_write even at disjoint ranges, and accepts two
/// overlapping read_write ranges in silence. Two tensors of one arena interleave replica by
/// replica; they are disjoint where their parts of one replica are.
fn conflict(written: &Tensor, other: &Tensor, other_access: Access) -> bool {
    if written.buffer != other.buffer {
        return false;
    }
    if other_access != Access::ReadWrite {
        return true;
    }
    let (a, b) = (written, other);
    let apart = if a.replica_stride == b.replica_stride && a.replica_stride > 0 {
        let stride = a.replica_stride;
        let (x, y) = (a.offset % stride, b.offset % stride);
        (x + a.replica_len() <= y || y + b.replica_len() <= x)
            && x + a.replica_len() <= stride
            && y + b.replica_len() <= stride
    } else {
        a.offset + a.span() <= b.offset || b.offset + b.span() <= a.offset
    };
    !apart
}

struct Dispatch {
    label: String,
    kernel: &'static str,
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    grid: [u32; 3],
    work: Work,
    slotted: bool,
    written: Vec<Tensor>,
}

impl Dispatch {
    fn encode(&self, pass: &mut wgpu::ComputePass<'_>, slot: u32) {
        pass.set_pipeline(&self.pipeline.raw);
        if self.slotted {
            pass.set_bind_group(0, &self.group, &[slot * UNIFORM_ALIGN as u32]);
        } else {
            pass.set_bind_group(0, &self.group, &[]);
        }
        pass.dispatch_workgroups(self.grid[0], self.grid[1], self.grid[2]);
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
    /// Zeros over the whole of a tensor.
    Clear(&'a Tensor),
}

impl Part<'_> {
    pub(super) fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        match self {
            Self::Run(program, slots) => program.encode(encoder, slots.clone()),
            Self::Clear(t) => {
                encoder.clear_buffer(&t.buffer, (t.offset * 4) as u64, Some((t.span() * 4) as u64));
            }
        }
    }
}

/// A closed plan.
pub struct Program {
    dispatches: Vec<Dispatch>,
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
