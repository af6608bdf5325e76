//! A tensor's copy in an image, for drivers that read an image at less cost than a buffer ([`crate::gpu::twins`]).
//!
//! An image follows its tensor: it is copied anew before a dispatch reads it, where the tensor's memory may have
//! changed since. Whatever writes memory counts there ([`Tensor::changed`]), so a frozen teacher is copied once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::gpu::tensor::Tensor;

/// Texels to a row of an image, a power of two: element `i` of an `array<vec4<f32>>` is the texel
/// `(i % WIDTH, i / WIDTH)`.
pub(crate) const WIDTH: usize = 1024;
pub(crate) const FORMAT: wgpu::TextureFormat = wgpu::TextureFormat::Rgba32Float;
/// Texels at the end of a row that hold nothing. Without them what lies a multiple of 4 KiB apart, as the rows of a
/// matrix of 1024 columns do, falls into the same few lines of a cache: 1.3 x the time of such a product.
const UNUSED: usize = 4;
const TEXEL: usize = 16;

/// An image that follows a tensor.
#[derive(Debug)]
pub(crate) struct Image {
    texture: wgpu::Texture,
    pub(crate) view: wgpu::TextureView,
    /// What it follows: a part of a buffer, in bytes and texels, and how often that may have changed.
    buffer: wgpu::Buffer,
    offset: usize,
    texels: usize,
    changes: Arc<AtomicU64>,
    /// The changes that it has.
    has: AtomicU64,
}

impl Image {
    /// Whether an image of this device can hold `tensor`.
    pub(crate) fn holds(gpu: &Gpu, tensor: &Tensor) -> bool {
        rows(texels(tensor)) <= gpu.limits.max_texture_dimension_2d as usize
    }

    /// An image of `tensor`, whose buffer counts its `changes`; without contents yet.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device has no memory for it.
    pub(crate) fn new(gpu: &Gpu, tensor: &Tensor, changes: &Arc<AtomicU64>) -> Result<Self> {
        let texels = texels(tensor);
        let texture = gpu.guarded(&format!("allocate an image of `{}`", tensor.label), || {
            gpu.device.create_texture(&wgpu::TextureDescriptor {
                label: Some(&tensor.label),
                size: size(WIDTH + UNUSED, rows(texels)),
                mip_level_count: 1,
                sample_count: 1,
                dimension: wgpu::TextureDimension::D2,
                format: FORMAT,
                usage: wgpu::TextureUsages::STORAGE_BINDING | wgpu::TextureUsages::COPY_DST,
                view_formats: &[],
            })
        })?;
        let image = Self {
            view: texture.create_view(&Default::default()),
            texture,
            buffer: tensor.buffer.clone(),
            offset: tensor.offset * 4,
            texels,
            changes: changes.clone(),
            has: AtomicU64::default(),
        };
        image.forget();
        Ok(image)
    }

    /// Says that the image has nothing of the tensor.
    pub(crate) fn forget(&self) {
        self.has.store(u64::MAX, Ordering::Relaxed);
    }

    /// Whether the tensor may have changed since it was copied last.
    pub(crate) fn is_behind(&self) -> bool {
        self.has.load(Ordering::Relaxed) != self.changes.load(Ordering::Relaxed)
    }

    /// Encodes a copy of the tensor: whole rows of texels, then what is left of one.
    pub(crate) fn follow(&self, encoder: &mut wgpu::CommandEncoder) {
        let (whole, rest) = (self.texels / WIDTH, self.texels % WIDTH);
        for (width, height, row) in [(WIDTH, whole, 0), (rest, 1, whole)] {
            if width * height == 0 {
                continue;
            }
            let from = wgpu::TexelCopyBufferInfo {
                buffer: &self.buffer,
                layout: wgpu::TexelCopyBufferLayout {
                    offset: (self.offset + row * WIDTH * TEXEL) as u64,
                    bytes_per_row: Some((WIDTH * TEXEL) as u32),
                    rows_per_image: None,
                },
            };
            let to = wgpu::TexelCopyTextureInfo {
                origin: wgpu::Origin3d { x: 0, y: row as u32, z: 0 },
                ..self.texture.as_image_copy()
            };
            encoder.copy_buffer_to_texture(from, to, size(width, height));
        }
        self.has.store(self.changes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

fn texels(tensor: &Tensor) -> usize {
    tensor.span() * 4 / TEXEL
}

fn rows(texels: usize) -> usize {
    texels.div_ceil(WIDTH).max(1)
}

fn size(width: usize, height: usize) -> wgpu::Extent3d {
    wgpu::Extent3d { width: width as u32, height: height as u32, depth_or_array_layers: 1 }
}
