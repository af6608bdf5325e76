//! The step is data: dispatches recorded once and checked then; what runs them is a [`Program`].

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::image;
use crate::gpu::pipeline::{Access, Binding, Constants, Kernel, Pipeline, SLOT};
use crate::gpu::program::{Dispatch, Program, SLOTS, UNIFORM_ALIGN, Work};
use crate::gpu::tensor::{ARENA_ALIGN, Tensor};

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

struct Recorded {
    label: String,
    kernel: &'static str,
    pipeline: Arc<Pipeline>,
    params: Vec<u8>,
    tensors: Vec<Operand>,
    grid: [u32; 3],
    work: Work,
}

/// A tensor by the name of its binding.
struct Operand {
    name: String,
    written: bool,
    tensor: Tensor,
}

impl Operand {
    /// Whether one of the two is written where the other is read or written.
    fn meets(&self, other: &Self) -> bool {
        (self.written || other.written) && !apart(&self.tensor, &other.tensor)
    }
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
    /// range would be written and used twice by the dispatch, or where the kernel does not build;
    /// [`Error::Usage`] for a view that begins where not every device can bind it, at no multiple of 256 bytes.
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
        for binding in bindings.iter().filter(|b| !matches!(b.access, Access::Uniform | Access::Image)) {
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
            // Refused on every device: few ask for as much, and past wgpu nobody else would say so.
            if !tensor.offset.is_multiple_of(ARENA_ALIGN) {
                return Err(Error::usage(
                    op(),
                    format!(
                        "views that begin at multiples of {ARENA_ALIGN} elements, as some devices bind no others"
                    ),
                    format!("`{}`, which begins at element {}", tensor.label, tensor.offset),
                ));
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
        let operand = |(b, t): (&Binding, Tensor)| {
            let written = b.access == Access::ReadWrite && !self.gpu.is_nothing(&t);
            Operand { name: b.name.clone(), written, tensor: t }
        };
        let tensors = tensors.into_iter().map(operand).collect();
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

    /// Uploads the parameters, makes the bind groups, puts what may run at once together and closes the plan.
    ///
    /// # Errors
    /// [`Error::Device`] where the device refuses.
    pub fn finish(self) -> Result<Program> {
        let gpu = self.gpu;
        let mut bytes = Vec::new();
        let mut offsets = Vec::new();
        for d in &self.recorded {
            offsets.push(bytes.len() as u64);
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
        let operands: Vec<_> = self.recorded.iter().map(|d| d.tensors.as_slice()).collect();
        let dispatches = by_depth(&operands)
            .into_iter()
            .map(|(i, waits)| finish_dispatch(gpu, &self.recorded[i], waits, &params, offsets[i], &slots))
            .collect::<Result<Vec<_>>>()?;
        Ok(Program { dispatches, direct: gpu.is_direct().then(|| gpu.device.clone()) })
    }
}

/// Which dispatches, by their operands, are to run after which: indices so that those of one depth stand together, in
/// the order in which they were recorded, each with whether it is the first of its depth and waits for the one before.
/// The depth of a dispatch is how many must run one after the other before it: a teacher's and a student's first layer
/// have the same.
fn by_depth(dispatches: &[&[Operand]]) -> Vec<(usize, bool)> {
    let mut depths: Vec<usize> = Vec::new();
    for (i, operands) in dispatches.iter().enumerate() {
        let meets = |other: &[Operand]| other.iter().any(|a| operands.iter().any(|b| a.meets(b)));
        let before = dispatches[..i].iter().zip(&depths).filter(|(other, _)| meets(other));
        depths.push(before.map(|(_, depth)| depth + 1).max().unwrap_or(0));
    }
    let mut order: Vec<_> = (0..depths.len()).collect();
    order.sort_by_key(|i| depths[*i]);
    let mut depth = 0;
    order.into_iter().map(|i| (i, std::mem::replace(&mut depth, depths[i]) != depths[i])).collect()
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
    d: &Recorded,
    waits: bool,
    params: &wgpu::Buffer,
    params_offset: u64,
    slots: &wgpu::Buffer,
) -> Result<Dispatch> {
    let bindings = &d.pipeline.reflection.bindings;
    let tensor = |b: &Binding| {
        let bound = d.tensors.iter().find(|operand| operand.name == b.name);
        bound.map(|operand| &operand.tensor).expect("bound at recording")
    };
    let tensors = |access| bindings.iter().filter(move |b| b.access == access).map(tensor);
    let written = tensors(Access::ReadWrite).cloned().collect();
    let images = tensors(Access::Image).map(|t| image::over(gpu, t)).collect::<Result<Vec<_>>>()?;
    let mut views = images.iter();
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
                (Access::Image, _) => {
                    wgpu::BindingResource::TextureView(views.next().expect("made for each"))
                }
                _ => {
                    let t = tensor(b);
                    buffer(&t.buffer, (t.offset * 4) as u64, (t.span().max(4) * 4) as u64)
                }
            };
            wgpu::BindGroupEntry { binding: b.index, resource }
        })
        .collect();
    Ok(Dispatch {
        label: d.label.clone(),
        kernel: d.kernel,
        bound: d.pipeline.bind(gpu, &d.label, &entries)?,
        grid: d.grid,
        work: d.work,
        slotted: bindings.iter().any(|b| b.name == SLOT),
        waits,
        written,
    })
}

/// Whether `written` and `other`, bound to the same dispatch, would meet in memory.
///
/// wgpu itself refuses one buffer as read and read_write even at disjoint ranges, and accepts two
/// overlapping read_write ranges in silence.
fn conflict(written: &Tensor, other: &Tensor, other_access: Access) -> bool {
    written.buffer == other.buffer && (other_access != Access::ReadWrite || !apart(written, other))
}

/// Whether no element is of both. Two tensors of one arena interleave replica by replica; they are apart where their
/// parts of one replica are.
fn apart(a: &Tensor, b: &Tensor) -> bool {
    if a.buffer != b.buffer {
        return true;
    }
    if a.replica_stride == b.replica_stride && a.replica_stride > 0 {
        let stride = a.replica_stride;
        let (x, y) = (a.offset % stride, b.offset % stride);
        (x + a.replica_len() <= y || y + b.replica_len() <= x)
            && x + a.replica_len() <= stride
            && y + b.replica_len() <= stride
    } else {
        a.offset + a.span() <= b.offset || b.offset + b.span() <= a.offset
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
