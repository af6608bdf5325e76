//! Images over the memory of tensors, for drivers that read an image at less cost than a buffer
//! ([`crate::gpu::twins`]).
//!
//! In Vulkan a buffer and an image of linear tiling may lie on the same memory, and each has what was written by way of
//! the other: both are host-accessible (specification, "Memory Aliasing"). wgpu has no word for that, so here the
//! driver is asked itself: for memory with a buffer on it where a tensor is made, and for an image over a part of it
//! where a dispatch reads one. wgpu takes the two for different memory. So that it still orders the dispatches that
//! write a tensor and those that read it, the buffer is bound wherever the image is.
#![allow(unsafe_code, reason = "the driver's own calls")]

use std::sync::{Arc, Weak};

use ash::vk;
use wgpu::hal::api::Vulkan;
use wgpu::hal::vulkan::{Buffer, Device, TextureMemory};

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::tensor::{ARENA_ALIGN, Tensor, USAGE, round_up};

/// Texels to a row of an image, a power of two: element `i` of an `array<vec4<f32>>` is the texel
/// `(i % WIDTH, i / WIDTH)`.
pub(crate) const WIDTH: usize = 1024;
pub(crate) const FORMAT: wgpu::TextureFormat = wgpu::TextureFormat::Rgba32Float;
const TEXEL: usize = 16;
const ROW: usize = TEXEL * WIDTH;
/// Bytes behind a tensor in its memory: an image ends with a row, and a driver may count rows by fours.
const BEHIND: usize = 4 * ROW;

/// Memory of the device, given back with the last that lies on it.
pub(crate) struct Memory {
    device: ash::Device,
    raw: vk::DeviceMemory,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.raw.fmt(f)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: what lies on the memory holds it ([`Laid`]); nothing does any more, and the device is there.
        unsafe { self.device.free_memory(self.raw, None) };
    }
}

enum Handle {
    Buffer(vk::Buffer),
    Image(vk::Image),
}

/// Something that lies on memory, or will: destroyed when dropped. wgpu does that after the last use, and before it
/// destroys the device.
struct Laid {
    handle: Handle,
    device: ash::Device,
    memory: Option<Arc<Memory>>,
}

impl Drop for Laid {
    fn drop(&mut self) {
        // SAFETY: made by this device, used by nothing any more, and gone before its memory.
        match self.handle {
            Handle::Buffer(raw) => unsafe { self.device.destroy_buffer(raw, None) },
            Handle::Image(raw) => unsafe { self.device.destroy_image(raw, None) },
        }
        self.memory = None;
    }
}

/// Whether an image can lie over any tensor of `device` that a shader can see: whether all memory is the host's
/// and the driver puts an image's texels one after the other, wherever a tensor may begin.
pub(crate) fn can_lie_over_tensors(device: &wgpu::Device, limits: &wgpu::Limits) -> bool {
    let reach = u64::from(limits.max_texture_dimension_2d) * ROW as u64;
    // SAFETY: the handle is used while its device is there, and the image only here.
    unsafe {
        let Some(hal) = device.as_hal::<Vulkan>() else { return false };
        let device = hal.raw_device();
        let types = hal.shared_instance().raw_instance();
        let types = types.get_physical_device_memory_properties(hal.raw_physical_device());
        let host = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        let Ok((raw, _laid)) = image(device, 3) else { return false };
        let wanted = device.get_image_memory_requirements(raw);
        let color = vk::ImageSubresource::default().aspect_mask(vk::ImageAspectFlags::COLOR);
        let layout = device.get_image_subresource_layout(raw, color);
        reach >= limits.max_storage_buffer_binding_size
            && matches!(types.memory_types_as_slice(), [only] if only.property_flags.contains(host))
            && (layout.offset, layout.row_pitch) == (0, ROW as u64)
            // What a shader sees begins at multiples of this (lavapipe 22.3 asks for 16 bytes, 25.0 for 64).
            && (4 * ARENA_ALIGN as u64).is_multiple_of(wanted.alignment)
            && wanted.size <= (3 * ROW + BEHIND) as u64
    }
}

/// A zeroed buffer of `bytes` bytes on memory of its own, for a device of which [`can_lie_over_tensors`] holds.
///
/// # Errors
/// [`Error::Device`] where the driver refuses.
pub(crate) fn buffer(gpu: &Gpu, label: &str, bytes: u64) -> Result<(wgpu::Buffer, Weak<Memory>)> {
    let op = format!("allocate `{label}`");
    // SAFETY: the buffer is made of this device as `desc` says, on memory that is larger, written in its whole length
    // while it is mapped, and there as long as the buffer is.
    let (raw, laid) = unsafe {
        let hal = gpu.device.as_hal::<Vulkan>().ok_or_else(|| Error::device(&op, "the device is gone"))?;
        zeroed(hal.raw_device(), bytes).map_err(|e| Error::device(&op, e.to_string()))?
    };
    let memory = laid.memory.as_ref().map(Arc::downgrade).unwrap_or_default();
    let desc =
        wgpu::BufferDescriptor { label: Some(label), size: bytes, usage: USAGE, mapped_at_creation: false };
    gpu.guarded(&op, || unsafe {
        let buffer = Buffer::from_raw_externally_owned(raw, Box::new(move || drop(laid)));
        (gpu.device.create_buffer_from_hal::<Vulkan>(buffer, &desc), memory)
    })
}

unsafe fn zeroed(device: &ash::Device, bytes: u64) -> std::result::Result<(vk::Buffer, Laid), vk::Result> {
    let usage = vk::BufferUsageFlags::STORAGE_BUFFER
        | vk::BufferUsageFlags::TRANSFER_SRC
        | vk::BufferUsageFlags::TRANSFER_DST;
    let info = vk::BufferCreateInfo::default().size(bytes).usage(usage);
    // SAFETY: the caller's.
    unsafe {
        let raw = device.create_buffer(&info, None)?;
        let mut laid = Laid { handle: Handle::Buffer(raw), device: device.clone(), memory: None };
        let size = round_up(device.get_buffer_memory_requirements(raw).size as usize, ROW) + BEHIND;
        let info = vk::MemoryAllocateInfo::default().allocation_size(size as u64);
        let memory = Memory { device: device.clone(), raw: device.allocate_memory(&info, None)? };
        let at = device.map_memory(memory.raw, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty())?;
        at.cast::<u8>().write_bytes(0, size);
        device.unmap_memory(memory.raw);
        device.bind_buffer_memory(raw, memory.raw, 0)?;
        laid.memory = Some(Arc::new(memory));
        Ok((raw, laid))
    }
}

unsafe fn image(device: &ash::Device, rows: usize) -> std::result::Result<(vk::Image, Laid), vk::Result> {
    let info = vk::ImageCreateInfo::default()
        .image_type(vk::ImageType::TYPE_2D)
        .format(vk::Format::R32G32B32A32_SFLOAT)
        .extent(vk::Extent3D { width: WIDTH as u32, height: rows as u32, depth: 1 })
        .mip_levels(1)
        .array_layers(1)
        .samples(vk::SampleCountFlags::TYPE_1)
        .tiling(vk::ImageTiling::LINEAR)
        .usage(vk::ImageUsageFlags::STORAGE);
    // SAFETY: the caller's.
    let raw = unsafe { device.create_image(&info, None)? };
    Ok((raw, Laid { handle: Handle::Image(raw), device: device.clone(), memory: None }))
}

/// An image over `tensor`, whose buffer is one of [`buffer`].
///
/// # Errors
/// [`Error::Device`] where the driver refuses.
pub(crate) fn over(gpu: &Gpu, tensor: &Tensor) -> Result<wgpu::TextureView> {
    let op = format!("make an image of `{}`", tensor.label);
    let rows = (tensor.span() * 4).div_ceil(ROW).max(1);
    let size = wgpu::Extent3d { width: WIDTH as u32, height: rows as u32, depth_or_array_layers: 1 };
    let desc = wgpu::hal::TextureDescriptor {
        label: Some(&tensor.label),
        size,
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format: FORMAT,
        usage: wgpu::TextureUses::STORAGE_READ_ONLY,
        memory_flags: wgpu::hal::MemoryFlags::empty(),
        view_formats: vec![],
    };
    // SAFETY: the image is made of this device as `desc` says; from its first row to its last it lies on memory that is
    // there as long as the image is.
    let texture = unsafe {
        let gone = || Error::device(&op, "the device is gone");
        let hal = gpu.device.as_hal::<Vulkan>().ok_or_else(gone)?;
        let memory = tensor.memory.upgrade().ok_or_else(gone)?;
        laid_over(&hal, memory, tensor.offset * 4, &desc).map_err(|e| Error::device(&op, e.to_string()))?
    };
    let desc = wgpu::TextureDescriptor {
        label: desc.label,
        size,
        mip_level_count: 1,
        sample_count: 1,
        dimension: desc.dimension,
        format: FORMAT,
        usage: wgpu::TextureUsages::STORAGE_BINDING,
        view_formats: &[],
    };
    // No layout yet: a software driver has but one, and leaves the memory as it is.
    let state = wgpu::TextureUses::UNINITIALIZED;
    let texture =
        gpu.guarded(&op, || unsafe { gpu.device.create_texture_from_hal::<Vulkan>(texture, &desc, state) })?;
    if gpu.is_direct() {
        // What wgpu does not see read it does not bring into the layout for it.
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        let state = wgpu::TextureUses::STORAGE_READ_ONLY;
        let read = wgpu::TextureTransition { texture: &texture, selector: None, state };
        encoder.transition_resources(std::iter::empty(), std::iter::once(read));
        gpu.queue.submit([encoder.finish()]);
    }
    Ok(texture.create_view(&Default::default()))
}

unsafe fn laid_over(
    hal: &Device,
    memory: Arc<Memory>,
    offset: usize,
    desc: &wgpu::hal::TextureDescriptor<'_>,
) -> std::result::Result<wgpu::hal::vulkan::Texture, vk::Result> {
    // SAFETY: the caller's.
    unsafe {
        let (raw, mut laid) = image(&memory.device, desc.size.height as usize)?;
        memory.device.bind_image_memory(raw, memory.raw, offset as u64)?;
        laid.memory = Some(memory);
        Ok(hal.texture_from_raw(raw, desc, Some(Box::new(move || drop(laid))), TextureMemory::External))
    }
}
