//! Where there is no Vulkan, wgpu encodes all: see direct.rs, whose place this takes.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::program::Piece;

fn nowhere<T>(op: &str) -> Result<T> {
    Err(Error::device(op, "no Vulkan here"))
}

pub(crate) fn reaches(_: &wgpu::Device) -> bool {
    false
}

pub(crate) enum Pipeline {}

impl Pipeline {
    pub(crate) fn new(
        _: &Gpu,
        op: &str,
        _: &str,
        _: naga::Module,
        _: bool,
        _: &[wgpu::BindGroupLayoutEntry],
    ) -> Result<Self> {
        nowhere(op)
    }

    pub(crate) fn bind(self: &Arc<Self>, _: &Gpu, op: &str, _: &[wgpu::BindGroupEntry<'_>]) -> Result<Bound> {
        nowhere(op)
    }
}

pub(crate) enum Bound {}

pub(crate) fn at_rest(_: &wgpu::Device) -> bool {
    true
}

pub(crate) fn encode(_: &Gpu, _: &[&Piece<'_>]) -> Result<wgpu::CommandBuffer> {
    nowhere("encode")
}

pub(crate) fn time_blocking(_: &Gpu, _: &[&Piece<'_>]) -> Result<Vec<u64>> {
    nowhere("time")
}
