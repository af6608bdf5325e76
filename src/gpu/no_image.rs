//! Where there is no Vulkan, no image lies over a tensor: see image.rs, whose place this takes.

use std::sync::Weak;

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::tensor::Tensor;

pub(crate) const WIDTH: usize = 1024;
pub(crate) const FORMAT: wgpu::TextureFormat = wgpu::TextureFormat::Rgba32Float;

#[derive(Debug)]
pub(crate) enum Memory {}

pub(crate) fn can_lie_over_tensors(_: &wgpu::Device, _: &wgpu::Limits) -> bool {
    false
}

pub(crate) fn buffer(_: &Gpu, label: &str, _: u64) -> Result<(wgpu::Buffer, Weak<Memory>)> {
    Err(Error::device(format!("allocate `{label}`"), "no Vulkan here"))
}

pub(crate) fn over(_: &Gpu, tensor: &Tensor) -> Result<wgpu::TextureView> {
    Err(Error::device(format!("make an image of `{}`", tensor.label), "no Vulkan here"))
}
