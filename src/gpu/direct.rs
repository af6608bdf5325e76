//! Dispatches given to Vulkan itself, past wgpu's bookkeeping.
//!
//! wgpu asks for each dispatch, each time that it is encoded, how every buffer and image bound to it was last used, and
//! puts barriers where the answer says so: nine tenths of the host's time for a dispatch. What a closed plan does never
//! changes, so its barriers are known when it is closed ([`crate::gpu::plan`]). Here its pipelines, descriptor sets and
//! commands are made by wgpu's own layer beneath, `wgpu::hal`, from the same shaders; devices, memory, copies and
//! submissions stay with wgpu. A device whose shaders are checked goes by wgpu, and so does one that is not of Vulkan.
//!
//! wgpu does not know what such commands touch. So, as opposed to what it does for its own:
//! - order: they begin and end with a barrier towards all that wgpu has before and after them;
//! - life: what is bound is held by what binds it, which waits for the device before it lets go ([`at_rest`]), and
//!   does not let go of what a device is stuck at;
//! - contents: wgpu clears memory at the first use that it sees, so tensors are cleared when they are made.
#![allow(unsafe_code, reason = "the layer beneath wgpu leaves these three to its caller")]

use std::borrow::Cow;
use std::fmt::Display;
use std::ops::{Deref, Range};
use std::sync::Arc;

use ash::vk;
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use wgpu::hal::api::Vulkan;
use wgpu::hal::vulkan::{
    BindGroup, BindGroupLayout, CommandEncoder, ComputePipeline, Device, PipelineLayout,
};
use wgpu::hal::{self, CommandEncoder as _, Device as _};

use crate::error::{Error, Result};
use crate::gpu::device::{self, Gpu};
use crate::gpu::program::{self, Dispatch, Piece};
use crate::gpu::tensor::Tensor;

/// Whether `device` is one of Vulkan.
pub(crate) fn reaches(device: &wgpu::Device) -> bool {
    // SAFETY: nothing is done with it.
    unsafe { device.as_hal::<Vulkan>() }.is_some()
}

fn gone(op: &str) -> Error {
    Error::device(op, "the device is gone")
}

/// A thing of the driver's, destroyed when dropped; its device is there as long as it is.
struct Owned<T> {
    thing: Option<T>,
    device: wgpu::Device,
    destroy: unsafe fn(&Device, T),
}

impl<T> Owned<T> {
    fn new<E: Display>(
        op: &str,
        gpu: &Gpu,
        destroy: unsafe fn(&Device, T),
        make: impl FnOnce(&Device) -> std::result::Result<T, E>,
    ) -> Result<Self> {
        // SAFETY: not destroyed here.
        let hal = unsafe { gpu.device.as_hal::<Vulkan>() }.ok_or_else(|| gone(op))?;
        let thing = make(&hal).map_err(|e| Error::device(op, e.to_string()))?;
        Ok(Self { thing: Some(thing), device: gpu.device.clone(), destroy })
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.thing.as_ref().expect("there until dropped")
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: made by this device, and the device has done what uses it ([`at_rest`]).
        unsafe {
            if let (Some(hal), Some(thing)) = (self.device.as_hal::<Vulkan>(), self.thing.take()) {
                (self.destroy)(&hal, thing);
            }
        }
    }
}

/// A compute pipeline with the layout of its one group.
pub(crate) struct Pipeline {
    raw: Owned<ComputePipeline>,
    layout: Owned<PipelineLayout>,
    group: Owned<BindGroupLayout>,
}

impl Pipeline {
    /// Builds a shader, with all run-time checks or none.
    ///
    /// # Errors
    /// [`Error::Device`] where the shader is not valid or the driver refuses.
    pub(crate) fn new(
        gpu: &Gpu,
        op: &str,
        name: &str,
        module: naga::Module,
        checked: bool,
        entries: &[wgpu::BindGroupLayoutEntry],
    ) -> Result<Self> {
        let label = Some(name);
        let info = Validator::new(ValidationFlags::all(), Capabilities::all())
            .subgroup_stages(ShaderStages::COMPUTE)
            .subgroup_operations(SubgroupOperationSet::all())
            .validate(&module)
            .map_err(|e| Error::device(op, e.emit_to_string("")))?;
        let module = hal::NagaShader { module: Cow::Owned(module), info, debug_source: None };
        // SAFETY: each is made from what was made before it on the same device, as wgpu makes it. Of shaders without
        // checks, see [`Gpu::build`].
        unsafe {
            let runtime_checks = match checked {
                true => wgpu::ShaderRuntimeChecks::checked(),
                false => wgpu::ShaderRuntimeChecks::unchecked(),
            };
            let desc = hal::ShaderModuleDescriptor { label, runtime_checks };
            let shader = Owned::new(op, gpu, Device::destroy_shader_module, |d| {
                d.create_shader_module(&desc, hal::ShaderInput::Naga(module))
            })?;
            let flags = hal::BindGroupLayoutFlags::empty();
            let desc = hal::BindGroupLayoutDescriptor { label, flags, entries };
            let group = Owned::new(op, gpu, Device::destroy_bind_group_layout, |d| {
                d.create_bind_group_layout(&desc)
            })?;
            let desc = hal::PipelineLayoutDescriptor {
                label,
                flags: hal::PipelineLayoutFlags::empty(),
                bind_group_layouts: &[Some(&*group)],
                immediate_size: 0,
            };
            let layout =
                Owned::new(op, gpu, Device::destroy_pipeline_layout, |d| d.create_pipeline_layout(&desc))?;
            let desc = hal::ComputePipelineDescriptor {
                label,
                layout: &*layout,
                stage: hal::ProgrammableStage {
                    module: &*shader,
                    entry_point: "main",
                    constants: &Default::default(),
                    zero_initialize_workgroup_memory: checked,
                },
                cache: None,
            };
            let raw =
                Owned::new(op, gpu, Device::destroy_compute_pipeline, |d| d.create_compute_pipeline(&desc))?;
            Ok(Self { raw, layout, group })
        }
    }

    /// Binds `entries`, buffers and images, each of them inside its buffer, in the order of their bindings.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver refuses.
    pub(crate) fn bind(
        self: &Arc<Self>,
        gpu: &Gpu,
        op: &str,
        entries: &[wgpu::BindGroupEntry<'_>],
    ) -> Result<Bound> {
        let (mut buffers, mut textures, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut held = Vec::new();
        for entry in entries {
            let index = match &entry.resource {
                wgpu::BindingResource::Buffer(part) => {
                    held.push(Held::Buffer(part.buffer.clone()));
                    // SAFETY: as long as the buffer is held, nothing destroys it.
                    let raw = unsafe { part.buffer.as_hal::<Vulkan>().map(|raw| unguarded(&*raw)) };
                    let raw = raw.ok_or_else(|| gone(op))?;
                    buffers.push(hal::BufferBinding::new_unchecked(raw, part.offset, part.size));
                    buffers.len()
                }
                wgpu::BindingResource::TextureView(view) => {
                    held.push(Held::Image((*view).clone()));
                    // SAFETY: as long as the view is held, nothing destroys it.
                    let raw = unsafe { view.as_hal::<Vulkan>().map(|raw| unguarded(&*raw)) };
                    let view = raw.ok_or_else(|| gone(op))?;
                    textures.push(hal::TextureBinding { view, usage: wgpu::TextureUses::STORAGE_READ_ONLY });
                    textures.len()
                }
                other => unreachable!("a plan does not bind {other:?}"),
            };
            let resource_index = index as u32 - 1;
            places.push(hal::BindGroupEntry { binding: entry.binding, resource_index, count: 1 });
        }
        let desc = hal::BindGroupDescriptor {
            label: Some(op),
            layout: &*self.group,
            buffers: &buffers,
            samplers: &[],
            textures: &textures,
            entries: &places,
            acceleration_structures: &[],
            external_textures: &[],
        };
        // SAFETY: all is of this device, and has what the layout says, from which `entries` were made.
        let group =
            Owned::new(op, gpu, Device::destroy_bind_group, |d| unsafe { d.create_bind_group(&desc) })?;
        Ok(Bound { group, pipeline: self.clone(), held })
    }
}

/// A reference that outlives its guard: wgpu's guards lock out whatever else wants one, so that two of them at once
/// may wait for each other.
///
/// # Safety
/// What is referred to is there and stays where it is for `'a`.
unsafe fn unguarded<'a, T>(thing: &T) -> &'a T {
    // SAFETY: the caller's.
    unsafe { &*std::ptr::from_ref(thing) }
}

enum Held {
    Buffer(wgpu::Buffer),
    Image(#[expect(dead_code, reason = "held, not used")] wgpu::TextureView),
}

/// A pipeline with what is bound to it.
pub(crate) struct Bound {
    group: Owned<BindGroup>,
    pipeline: Arc<Pipeline>,
    held: Vec<Held>,
}

impl Bound {
    fn of(dispatch: &Dispatch) -> &Self {
        match &dispatch.bound {
            program::Bound::Direct(bound) => bound,
            program::Bound::Tracked(..) => unreachable!("a device goes by wgpu or past it, with all it does"),
        }
    }

    fn holds(&self, buffer: &wgpu::Buffer) -> bool {
        self.held.iter().any(|held| matches!(held, Held::Buffer(b) if b == buffer))
    }
}

/// Waits until `device` has done all that it was given; false where it is stuck. A lost device has nothing left to do.
pub(crate) fn at_rest(device: &wgpu::Device) -> bool {
    !matches!(device::polled(device, device::until(None)), Some(Err(wgpu::PollError::Timeout)))
}

/// Encodes pieces, one after the other.
///
/// # Errors
/// [`Error::Device`] where the device is gone.
///
/// # Panics
/// Where a tensor is cleared that no dispatch among the pieces has bound, so that nothing would hold it.
pub(crate) fn encode(gpu: &Gpu, pieces: &[&Piece<'_>]) -> Result<wgpu::CommandBuffer> {
    encode_stamped(gpu, pieces, None)
}

/// Encodes pieces, a pair of timestamps around each, submits, waits, and gives the ticks from one to the other of each
/// pair.
///
/// # Errors
/// [`Error::Device`] where the device is lost or refuses.
pub(crate) fn time_blocking(gpu: &Gpu, pieces: &[&Piece<'_>]) -> Result<Vec<u64>> {
    let mut ticks = vec![0u64; 2 * pieces.len()];
    let count = ticks.len().max(1) as u32;
    let info = vk::QueryPoolCreateInfo::default().query_type(vk::QueryType::TIMESTAMP).query_count(count);
    // SAFETY: of this device; destroyed when it has written them, or not at all.
    let queries = Owned::new(
        "time",
        gpu,
        |d: &Device, queries| unsafe { d.raw_device().destroy_query_pool(queries, None) },
        |d| unsafe { d.raw_device().create_query_pool(&info, None) },
    )?;
    let done = gpu.queue.submit([encode_stamped(gpu, pieces, Some(*queries))?]);
    if let Err(error) = gpu.wait(Some(done)) {
        std::mem::forget(queries);
        return Err(error);
    }
    // SAFETY: of this device, and all were written.
    let read = unsafe {
        let device = gpu.device.as_hal::<Vulkan>().ok_or_else(|| gone("time"))?;
        let how = vk::QueryResultFlags::TYPE_64 | vk::QueryResultFlags::WAIT;
        device.raw_device().get_query_pool_results(*queries, 0, &mut ticks, how)
    };
    read.map_err(|e| Error::device("time", e.to_string()))?;
    Ok(ticks.chunks_exact(2).map(|t| t[1].saturating_sub(t[0])).collect())
}

fn encode_stamped(
    gpu: &Gpu,
    pieces: &[&Piece<'_>],
    stamps: Option<vk::QueryPool>,
) -> Result<wgpu::CommandBuffer> {
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    // SAFETY: wgpu begins and ends the encoder. What is recorded holds what it uses until the device has done it.
    let recorded = unsafe {
        let device = gpu.device.as_hal::<Vulkan>();
        encoder.as_hal_mut::<Vulkan, _, _>(|raw| {
            let recorder = Recorder { raw: raw?, device: device.as_deref()?.raw_device() };
            recorder.record(pieces, stamps);
            Some(())
        })
    };
    recorded.map(|()| encoder.finish()).ok_or_else(|| gone("encode"))
}

const COMPUTE: vk::PipelineStageFlags = vk::PipelineStageFlags::COMPUTE_SHADER;
/// Where wgpu's commands and the clearing of a tensor touch one.
const ANY: vk::PipelineStageFlags =
    vk::PipelineStageFlags::from_raw(COMPUTE.as_raw() | vk::PipelineStageFlags::TRANSFER.as_raw());

struct Recorder<'a> {
    raw: &'a mut CommandEncoder,
    device: &'a ash::Device,
}

impl Recorder<'_> {
    unsafe fn record(mut self, pieces: &[&Piece<'_>], stamps: Option<vk::QueryPool>) {
        let holds = |piece: &Piece<'_>, tensor: &Tensor| match piece {
            Piece::Run { dispatches, .. } => dispatches.iter().any(|d| Bound::of(d).holds(&tensor.buffer)),
            Piece::Clear(_) => false,
        };
        // SAFETY: the caller's.
        unsafe {
            let commands = self.raw.raw_handle();
            let stamp = |index| {
                if let Some(queries) = stamps {
                    let stage = vk::PipelineStageFlags::BOTTOM_OF_PIPE;
                    self.device.cmd_write_timestamp(commands, stage, queries, index);
                }
            };
            if let Some(queries) = stamps {
                self.device.cmd_reset_query_pool(commands, queries, 0, 2 * pieces.len() as u32);
            }
            self.raw.begin_compute_pass(&hal::ComputePassDescriptor { label: None, timestamp_writes: None });
            for (i, piece) in (0..).zip(pieces) {
                self.barrier(ANY);
                stamp(2 * i);
                match piece {
                    Piece::Run { dispatches, slots, width } => self.run(dispatches, slots.clone(), *width),
                    Piece::Clear(tensor) => {
                        let held = pieces.iter().any(|piece| holds(piece, tensor));
                        assert!(held, "`{}` is cleared where nothing has it bound", tensor.label);
                        self.clear(tensor);
                    }
                }
                stamp(2 * i + 1);
            }
            self.barrier(ANY);
            self.raw.end_compute_pass();
        }
    }

    unsafe fn run(&mut self, dispatches: &[Dispatch], slots: Range<u32>, width: u32) {
        let first = slots.start;
        for slot in slots {
            for (i, dispatch) in dispatches.iter().enumerate() {
                let Bound { pipeline, group, .. } = Bound::of(dispatch);
                // SAFETY: the caller's.
                unsafe {
                    // A slot's first waits for all of the slot before.
                    if dispatch.waits || (i == 0 && slot > first) {
                        self.barrier(COMPUTE);
                    }
                    self.raw.set_compute_pipeline(&pipeline.raw);
                    dispatch.at_slot(slot, |at| self.raw.set_bind_group(&pipeline.layout, 0, group, at));
                    self.raw.dispatch_workgroups(dispatch.workgroups(width));
                }
            }
        }
    }

    unsafe fn clear(&mut self, tensor: &Tensor) {
        let bytes = (tensor.offset * 4) as u64..((tensor.offset + tensor.span()) * 4) as u64;
        // SAFETY: the caller's.
        unsafe {
            if let Some(buffer) = tensor.buffer.as_hal::<Vulkan>() {
                self.raw.clear_buffer(&buffer, bytes);
            }
        }
    }

    /// What was written before is there for what comes after, and what was read before may be written.
    unsafe fn barrier(&self, stages: vk::PipelineStageFlags) {
        let memory = vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::MEMORY_WRITE)
            .dst_access_mask(vk::AccessFlags::MEMORY_READ | vk::AccessFlags::MEMORY_WRITE);
        let how = vk::DependencyFlags::empty();
        // SAFETY: the caller's.
        unsafe {
            self.device.cmd_pipeline_barrier(self.raw.raw_handle(), stages, stages, how, &[memory], &[], &[]);
        }
    }
}
