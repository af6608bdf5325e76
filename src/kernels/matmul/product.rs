//! A product as dispatches: whole, or as parts of K and their sum.

use super::family::{self, Variant};
use super::{Epilogue, Flags, Params, pieces};
use crate::error::Result;
use crate::gpu::program::Work;
use crate::gpu::{Call, Plan, Tensor};

/// One product to be recorded, checked.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) label: &'a str,
    pub(super) flags: Flags,
    pub(super) a: &'a Tensor,
    pub(super) b: &'a Tensor,
    pub(super) c: &'a Tensor,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) replicas: usize,
}

impl Product<'_> {
    fn params(&self) -> Params {
        Params {
            m: self.m as u32,
            n: self.n as u32,
            k: self.k as u32,
            a_stride: self.a.row_stride as u32,
            b_stride: self.b.row_stride as u32,
            c_stride: self.c.row_stride as u32,
            a_replica: self.a.stride_for(self.replicas),
            b_replica: self.b.stride_for(self.replicas),
            c_replica: self.c.replica_stride as u32,
            replicas: self.replicas as u32,
            ..Params::default()
        }
    }

    pub(super) fn work(&self) -> Work {
        let distinct = |t: &Tensor| t.shape[0] * t.shape[1] * t.shape[2];
        Work::new(
            2 * self.replicas * self.m * self.n * self.k,
            distinct(self.a) + distinct(self.b) + distinct(self.c),
        )
    }

    fn grid(&self, variant: &Variant, splits: u32) -> [u32; 3] {
        let [rows, cols] = variant.tile;
        [
            (self.c.row_stride as u32).div_ceil(cols),
            (self.m as u32).div_ceil(rows),
            self.replicas as u32 * splits,
        ]
    }

    /// One dispatch, or one for so many rows of tiles, epilogue and all.
    pub(super) fn whole(
        &self,
        plan: &mut Plan<'_>,
        variant: &Variant,
        tiles: usize,
        epilogue: &Epilogue<'_>,
    ) -> Result<()> {
        let nothing = plan.gpu.nothing()?;
        let ends = Ends::new(epilogue, self.b, &nothing);
        let call = Call {
            kernel: variant.kernel,
            constants: variant.constants(&self.flags, 1, in_pairs(self.c)),
            label: self.label,
            params: ends.params(self.params(), self.replicas),
            tensors: &[
                ("a", self.a),
                ("b", self.b),
                ("c", self.c),
                ("bias", ends.bias),
                ("saved", ends.saved),
                ("extra", ends.extra),
            ],
            grid: self.grid(variant, 1),
            work: self.work(),
        };
        pieces::dispatch(plan, variant, tiles, &call)
    }

    /// Partial products over parts of K, then their sum and the epilogue.
    pub(super) fn split(
        &self,
        plan: &mut Plan<'_>,
        variant: &Variant,
        splits: u32,
        tiles: usize,
        epilogue: &Epilogue<'_>,
    ) -> Result<()> {
        let copies = splits as usize * self.replicas;
        let name = |what: &str| format!("{}.{what}", self.label);
        let nothing = plan.gpu.nothing()?;
        // matmul_reduce walks the parts and C by one row stride.
        let mut partial = Tensor::zeros(plan.gpu, &name("partial"), [copies, self.m, self.c.row_stride])?;
        partial.shape[2] = self.n;
        let sums = match epilogue.row_sums {
            Some(_) => Some(Tensor::zeros(plan.gpu, &name("partial_sums"), [copies, 1, self.m])?),
            None => None,
        };
        // Bound for reading where there are none: something that is there and not written.
        let sums_read = sums.as_ref().unwrap_or(&partial);
        let sums = sums.as_ref().unwrap_or(&nothing);
        let flags = Flags { row_sums: self.flags.row_sums, ..Flags::new(self.flags.form, &Epilogue::default()) };
        // Each part begins at a multiple of four k.
        let k_chunk = (self.k as u32).div_ceil(splits).next_multiple_of(4);
        let (label, constants) = (name("parts"), variant.constants(&flags, splits, in_pairs(&partial)));
        let call = Call {
            kernel: variant.kernel,
            constants,
            label: &label,
            params: Params {
                c_replica: partial.replica_stride as u32,
                c_stride: partial.row_stride as u32,
                extra_replica: sums.replica_stride as u32,
                k_chunk,
                ..self.params()
            },
            tensors: &[
                ("a", self.a),
                ("b", self.b),
                ("c", &partial),
                ("bias", self.b),
                ("saved", self.b),
                ("extra", sums),
            ],
            grid: self.grid(variant, splits),
            work: self.work(),
        };
        pieces::dispatch(plan, variant, tiles, &call)?;
        let ends = Ends::new(epilogue, &partial, &nothing);
        let groups = (self.m * self.c.row_stride / 4).div_ceil(64) as u32;
        plan.dispatch(Call {
            kernel: &family::REDUCE,
            constants: self.flags.for_reduce(splits),
            label: self.label,
            params: ends.params(
                Params {
                    a_replica: partial.replica_stride as u32,
                    b_replica: sums.replica_stride as u32,
                    ..self.params()
                },
                self.replicas,
            ),
            tensors: &[
                ("a", &partial),
                ("b", sums_read),
                ("c", self.c),
                ("bias", ends.bias),
                ("saved", ends.saved),
                ("extra", ends.extra),
            ],
            grid: [groups.min(65_535), groups.div_ceil(65_535), self.replicas as u32],
            work: Work::new(0, partial.span() + self.c.span()),
        })
    }
}

/// Whether every row begins at an even vec4.
fn in_pairs(c: &Tensor) -> bool {
    c.row_stride.is_multiple_of(8) && c.replica_stride.is_multiple_of(8)
}

/// What the epilogue binds; where a variant does not use a binding, something that is there.
struct Ends<'a> {
    bias: &'a Tensor,
    saved: &'a Tensor,
    extra: &'a Tensor,
    used: [bool; 3],
}

impl<'a> Ends<'a> {
    fn new(epilogue: &Epilogue<'a>, read: &'a Tensor, scrap: &'a Tensor) -> Self {
        let extra = epilogue.keep.or(epilogue.row_sums);
        Self {
            bias: epilogue.bias.unwrap_or(read),
            saved: epilogue.mask.map_or(read, |(_, t)| t),
            extra: extra.unwrap_or(scrap),
            used: [epilogue.bias.is_some(), epilogue.mask.is_some(), extra.is_some()],
        }
    }

    fn params(&self, params: Params, replicas: usize) -> Params {
        let stride = |used: bool, t: &Tensor| if used { t.stride_for(replicas) } else { 0 };
        let [bias, saved, extra] = self.used;
        Params {
            bias_replica: stride(bias, self.bias),
            saved_replica: stride(saved, self.saved),
            extra_replica: stride(extra, self.extra),
            ..params
        }
    }
}
