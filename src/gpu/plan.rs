//! The step is data: dispatches recorded once and checked then; what runs them is a [`Program`].

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::image;
use crate::gpu::pipeline::{Access, Binding, Constants, Kernel, Pipeline, SLOT};
use crate::gpu::program::{Dispatch, Program, SLOTS, UNIFORM_ALIGN, Work};
use crate::gpu::tensor::Tensor;

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
    let tensor = |b: &Binding| {
        let bound = d.tensors.iter().find(|(name, _)| *name == b.name);
        bound.map(|(_, tensor)| tensor).expect("bound at recording")
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
    let group = gpu.guarded(&format!("bind `{}`", d.label), || {
        gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&d.label),
            layout: &d.pipeline.layout,
            entries: &entries,
        })
    })?;
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
