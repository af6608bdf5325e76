//! Device memory with a shape: `[replica, rows, cols]`, rows padded to a multiple of four elements.

use std::ops::Range;
use std::sync::Weak;

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::image::{self, Memory};

/// Rows start at multiples of this many elements, so that vec4 loads are always legal.
pub const ROW_ALIGN: usize = 4;
/// Tensors inside an arena start at multiples of this many elements: 256 bytes, the largest
/// storage offset alignment that WebGPU allows a device to ask for.
pub const ARENA_ALIGN: usize = 64;
/// What a tensor's buffer is used for.
pub(super) const USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// `n` rounded up to a multiple of `to`.
pub fn round_up(n: usize, to: usize) -> usize {
    n.div_ceil(to) * to
}

/// A view of 32-bit elements in a device buffer. Cloning copies the handle, not the memory.
///
/// Element `(r, i, j)` lies at `offset + r * replica_stride + i * row_stride + j`, all in elements.
/// The padding between `cols` and `row_stride` holds zeros and every kernel keeps it so.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) offset: usize,
    /// Replicas, rows, columns.
    pub shape: [usize; 3],
    /// Elements from a row to the next.
    pub row_stride: usize,
    /// Elements from a replica to the next.
    pub replica_stride: usize,
    /// The name in traces, errors and the driver's tools.
    pub label: String,
    /// What the buffer lies on, where an image can lie there too.
    pub(crate) memory: Weak<Memory>,
}

impl Tensor {
    /// A zeroed tensor in a buffer of its own.
    ///
    /// # Errors
    /// [`Error::Device`] naming the bytes wanted and the limit, where the device refuses.
    pub fn zeros(gpu: &Gpu, label: &str, shape: [usize; 3]) -> Result<Self> {
        let [replicas, rows, cols] = shape;
        let row_stride = round_up(cols, ROW_ALIGN);
        let per_replica = size(label, &[rows, row_stride])?;
        let (buffer, memory) = allocate(gpu, label, size(label, &[replicas.max(1), per_replica])?)?;
        Ok(Self {
            buffer,
            offset: 0,
            shape,
            row_stride,
            replica_stride: per_replica,
            label: label.to_owned(),
            memory,
        })
    }

    /// A tensor holding `data`, given tight: replica by replica, row by row, without padding.
    ///
    /// # Errors
    /// As [`Tensor::zeros`]; [`Error::Usage`] where `data` does not have the shape's size.
    pub fn upload<T: bytemuck::Pod>(gpu: &Gpu, label: &str, shape: [usize; 3], data: &[T]) -> Result<Self> {
        let tensor = Self::zeros(gpu, label, shape)?;
        tensor.write(gpu, data)?;
        Ok(tensor)
    }

    /// Several tensors of `replicas` replicas in one buffer, replica-major: all of a replica's
    /// tensors lie together, so one elementwise dispatch covers them. Gives the whole and the parts.
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    pub fn arena(
        gpu: &Gpu,
        label: &str,
        replicas: usize,
        parts: &[(String, usize, usize)],
    ) -> Result<(Self, Vec<Self>)> {
        let mut offsets = Vec::new();
        let mut end = 0;
        for (name, rows, cols) in parts {
            offsets.push(end);
            let len = size(name, &[*rows, round_up(*cols, ROW_ALIGN)])?;
            end = round_up(end + len, ARENA_ALIGN);
        }
        let whole = Self::zeros(gpu, label, [replicas, 1, end])?;
        let views = parts
            .iter()
            .zip(offsets)
            .map(|((name, rows, cols), offset)| {
                let mut view = whole.view(offset, [replicas, *rows, *cols], round_up(*cols, ROW_ALIGN), end);
                view.label = format!("{label}.{name}");
                view
            })
            .collect();
        Ok((whole, views))
    }

    /// The stride with which a kernel of `replicas` replicas walks this tensor: a single replica is
    /// shared by all of them.
    ///
    /// # Panics
    /// Where it has some other number of replicas: our own bug.
    pub(crate) fn stride_for(&self, replicas: usize) -> u32 {
        match self.shape[0] {
            1 => 0,
            n => {
                assert_eq!(n, replicas, "`{}` has {n} replicas", self.label);
                self.replica_stride as u32
            }
        }
    }

    /// Other elements of the same buffer.
    pub(crate) fn view(
        &self,
        offset: usize,
        shape: [usize; 3],
        row_stride: usize,
        replica_stride: usize,
    ) -> Self {
        Self { offset, shape, row_stride, replica_stride, ..self.clone() }
    }

    /// One replica of it.
    pub fn replica(&self, r: usize) -> Self {
        let [_, rows, cols] = self.shape;
        let offset = self.offset + r * self.replica_stride;
        self.view(offset, [1, rows, cols], self.row_stride, self.replica_stride)
    }

    /// Rows `range` of every replica.
    pub fn rows(&self, range: Range<usize>) -> Self {
        let [replicas, _, cols] = self.shape;
        let offset = self.offset + range.start * self.row_stride;
        self.view(offset, [replicas, range.len(), cols], self.row_stride, self.replica_stride)
    }

    /// Elements from the view's first to one past its last, over all replicas.
    pub(crate) fn span(&self) -> usize {
        self.shape[0].saturating_sub(1) * self.replica_stride + self.replica_len()
    }

    /// Elements of one replica, padding included.
    pub(crate) fn replica_len(&self) -> usize {
        self.shape[1] * self.row_stride
    }

    /// Writes tight data (replica by replica, row by row), before the next submission.
    ///
    /// # Errors
    /// [`Error::Usage`] where the length does not fit the shape; [`Error::Device`] where the device is lost.
    pub fn write<T: bytemuck::Pod>(&self, gpu: &Gpu, data: &[T]) -> Result<()> {
        assert_eq!(size_of::<T>(), 4, "tensors hold 32-bit elements");
        let [replicas, rows, cols] = self.shape;
        if data.len() != replicas * rows * cols {
            return Err(Error::usage(
                format!("tensor `{}`", self.label),
                format!("{replicas} x {rows} x {cols} values"),
                format!("{} values", data.len()),
            ));
        }
        gpu.check()?;
        if data.is_empty() {
            return Ok(());
        }
        for (r, replica) in data.chunks_exact(rows * cols).enumerate() {
            let at = ((self.offset + r * self.replica_stride) * 4) as u64;
            if cols == self.row_stride {
                gpu.queue.write_buffer(&self.buffer, at, bytemuck::cast_slice(replica));
                continue;
            }
            let mut padded = vec![T::zeroed(); rows * self.row_stride];
            for (to, from) in padded.chunks_exact_mut(self.row_stride).zip(replica.chunks_exact(cols)) {
                to[..cols].copy_from_slice(from);
            }
            gpu.queue.write_buffer(&self.buffer, at, bytemuck::cast_slice(&padded));
        }
        Ok(())
    }

    /// Copies the tensor to the host, tight, and waits for it. One of the two named waits.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or refuses.
    pub fn read_blocking<T: bytemuck::Pod>(&self, gpu: &Gpu) -> Result<Vec<T>> {
        let raw = self.read_padded_blocking::<T>(gpu)?;
        let [replicas, rows, cols] = self.shape;
        let mut tight = Vec::with_capacity(replicas * rows * cols);
        for r in 0..replicas {
            for i in 0..rows {
                let at = r * self.replica_stride + i * self.row_stride;
                tight.extend_from_slice(&raw[at..at + cols]);
            }
        }
        Ok(tight)
    }

    /// The same 32-bit elements on another device.
    ///
    /// # Errors
    /// As [`Tensor::zeros`] and [`Tensor::read_blocking`].
    pub fn copied(&self, from: &Gpu, to: &Gpu) -> Result<Self> {
        Self::upload(to, &self.label, self.shape, &self.read_blocking::<u32>(from)?)
    }

    /// The view's whole span, padding and all.
    ///
    /// # Errors
    /// As [`Tensor::read_blocking`].
    pub fn read_padded_blocking<T: bytemuck::Pod>(&self, gpu: &Gpu) -> Result<Vec<T>> {
        assert_eq!(size_of::<T>(), 4, "tensors hold 32-bit elements");
        let bytes = (self.span() * 4) as u64;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        gpu.check()?;
        let staging = gpu.guarded("allocate readback", || staging(gpu, bytes))?;
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&self.buffer, (self.offset * 4) as u64, &staging, 0, bytes);
        let done = gpu.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |_| {});
        gpu.wait(Some(done))?;
        let view = staging
            .get_mapped_range(..)
            .map_err(|e| Error::device(format!("read `{}`", self.label), e.to_string()))?;
        Ok(bytemuck::pod_collect_to_vec(&view))
    }

    /// Fills the whole span with one 32-bit pattern: the tests' poison, so that an element that
    /// nobody wrote looks different from one that was written as zero.
    pub fn fill_bits(&self, gpu: &Gpu, bits: u32) {
        let data = vec![bits; self.span()];
        gpu.queue.write_buffer(&self.buffer, (self.offset * 4) as u64, bytemuck::cast_slice(&data));
    }

    /// Submits a device-side copy of the whole span into `to`, which has the same layout.
    pub(crate) fn copy_to(&self, gpu: &Gpu, to: &Self) {
        assert_eq!(self.span(), to.span(), "`{}` into `{}`", self.label, to.label);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(
            &self.buffer,
            (self.offset * 4) as u64,
            &to.buffer,
            (to.offset * 4) as u64,
            (self.span() * 4) as u64,
        );
        gpu.queue.submit([encoder.finish()]);
    }
}

pub(crate) fn staging(gpu: &Gpu, bytes: u64) -> wgpu::Buffer {
    gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("readback"),
        size: bytes,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

fn size(label: &str, factors: &[usize]) -> Result<usize> {
    factors
        .iter()
        .try_fold(1usize, |a, b| a.checked_mul(*b))
        .filter(|n| n.checked_mul(4).is_some())
        .ok_or_else(|| Error::device(format!("allocate `{label}`"), "the size overflows 64 bits"))
}

fn allocate(gpu: &Gpu, label: &str, elements: usize) -> Result<(wgpu::Buffer, Weak<Memory>)> {
    let bytes = (elements.max(ROW_ALIGN) * 4) as u64;
    let op = format!("allocate `{label}`");
    let limit = gpu.limits.max_buffer_size;
    if bytes > limit {
        return Err(Error::device(
            op,
            format!("wanted {bytes} bytes, the device's largest buffer is {limit} bytes"),
        )
        .with_hint("use smaller layers, fewer replicas or a smaller batch"));
    }
    gpu.check()?;
    let made = match gpu.takes_twins() {
        true => image::buffer(gpu, label, bytes),
        false => gpu.guarded(&op, || {
            let desc = wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes,
                usage: USAGE,
                mapped_at_creation: false,
            };
            let buffer = gpu.device.create_buffer(&desc);
            if gpu.is_direct() {
                let mut encoder = gpu.device.create_command_encoder(&Default::default());
                encoder.clear_buffer(&buffer, 0, None);
                gpu.queue.submit([encoder.finish()]);
            }
            (buffer, Weak::new())
        }),
    };
    made.map_err(|e| match e {
        Error::Device { op, what, .. } => {
            Error::device(op, format!("wanted {bytes} bytes, which the device does not have ({what})"))
                .with_hint("use smaller layers, fewer replicas or a smaller batch")
        }
        other => other,
    })
}
