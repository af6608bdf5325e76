//! Tensors in the middle of poisoned memory: what a kernel must not touch, and what it must.

use crate::error::Result;
use crate::gpu::Tensor;
use crate::gpu::device::Gpu;
use crate::gpu::tensor::{ARENA_ALIGN, ROW_ALIGN, round_up};

/// A quiet NaN that no arithmetic makes: a kernel that reads it, or leaves it in its output, is found.
pub const POISON: u32 = 0x7fc0_dead;

/// Poisoned elements before and after each tensor.
const GUARD: usize = ARENA_ALIGN;

/// How a tensor lies in its memory beyond its shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Vec4 groups between the padded row and the next row: zeros, like the padding.
    pub row: usize,
    /// Vec4 groups between a replica and the next: poison.
    pub replica: usize,
}

impl Padding {
    /// Rows end where they must.
    pub const NONE: Self = Self { row: 0, replica: 0 };
}

/// A tensor between guard zones.
pub(super) struct Zone {
    pub(super) tensor: Tensor,
    whole: Tensor,
}

impl Zone {
    /// Poison all over.
    pub(super) fn new(gpu: &Gpu, label: &str, shape: [usize; 3], padding: Padding) -> Result<Self> {
        let [replicas, rows, cols] = shape;
        let row_stride = round_up(cols, ROW_ALIGN) + padding.row * ROW_ALIGN;
        let replica_stride = rows * row_stride + padding.replica * ROW_ALIGN;
        let len = GUARD + replicas * replica_stride + GUARD;
        let whole = Tensor::zeros(gpu, label, [1, 1, len])?;
        whole.fill_bits(gpu, POISON);
        let tensor = whole.view(GUARD, shape, row_stride, replica_stride);
        Ok(Self { tensor, whole })
    }

    /// Holds `data`, given tight; zeros in the padding columns.
    pub(super) fn filled<T: bytemuck::Pod>(
        gpu: &Gpu,
        label: &str,
        shape: [usize; 3],
        padding: Padding,
        data: &[T],
    ) -> Result<Self> {
        let zone = Self::new(gpu, label, shape, padding)?;
        zone.tensor.write(gpu, data)?;
        Ok(zone)
    }

    /// An output: poison that the kernel has to replace.
    pub(super) fn output(gpu: &Gpu, label: &str, shape: [usize; 3], padding: Padding) -> Result<Self> {
        Self::new(gpu, label, shape, padding)
    }

    /// An output whose kernel leaves the padding columns alone: they start as zeros.
    pub(super) fn output_unpadded(gpu: &Gpu, label: &str, shape: [usize; 3]) -> Result<Self> {
        let poison = vec![POISON; shape.iter().product()];
        Self::filled(gpu, label, shape, Padding::NONE, &poison)
    }

    /// Everything, guards and all.
    pub(super) fn read(&self, gpu: &Gpu) -> Result<Contents> {
        Ok(Contents { bits: self.whole.read_padded_blocking::<u32>(gpu)?, tensor: self.tensor.clone() })
    }
}

/// What a zone held after the kernel.
pub(super) struct Contents {
    bits: Vec<u32>,
    tensor: Tensor,
}

impl Contents {
    fn at(&self, replica: usize, row: usize, col: usize) -> usize {
        let t = &self.tensor;
        GUARD + replica * t.replica_stride + row * t.row_stride + col
    }

    /// One replica's rows `from..to`, tight.
    pub(super) fn rows(&self, replica: usize, from: usize, to: usize) -> Vec<f32> {
        let cols = self.tensor.shape[2];
        let row = |i| &self.bits[self.at(replica, i, 0)..][..cols];
        (from..to).flat_map(row).map(|b| f32::from_bits(*b)).collect()
    }

    /// One replica, tight.
    pub(super) fn replica(&self, replica: usize) -> Vec<f32> {
        self.rows(replica, 0, self.tensor.shape[1])
    }

    pub(super) fn bits(&self) -> &[u32] {
        &self.bits
    }

    /// The first place that is not as the kernel had to leave it: a guard or a row outside `written`
    /// that changed, a padding column that is not zero.
    pub(super) fn stray(&self, written: impl Fn(usize) -> bool) -> Option<String> {
        let t = &self.tensor;
        let [replicas, rows, cols] = t.shape;
        let mut next = 0;
        // Everything between what belongs to the tensor is a guard.
        let mut guards = Vec::new();
        for r in 0..replicas {
            for i in 0..rows {
                let at = self.at(r, i, 0);
                guards.push((next, at));
                next = at + t.row_stride;
                let row = &self.bits[at..next];
                if !written(i) {
                    guards.push((at, next));
                } else if let Some(j) = (cols..t.row_stride).find(|j| row[*j] != 0) {
                    return Some(format!(
                        "`{}`: padding column {j} of row {i}, replica {r} is {:#010x}, not zero",
                        t.label, row[j]
                    ));
                }
            }
        }
        guards.push((next, self.bits.len()));
        let changed = guards.into_iter().flat_map(|(from, to)| from..to).find(|i| self.bits[*i] != POISON);
        changed.map(|i| {
            format!(
                "`{}`: wrote {:#010x} outside its rows, {} elements from the first",
                t.label,
                self.bits[i],
                i as i64 - GUARD as i64
            )
        })
    }
}
