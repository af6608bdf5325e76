//! `x[r, i, j] = source[order[r, row_start + i], j] * gain[j] + shift[j]`: a batch from the
//! resident data set, normalised on the way, its images moved a little where asked for.

use crate::error::Result;
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::program::Work;
use crate::gpu::{Call, Kernel, Plan, Tensor};
use crate::kernels::sgd::FLAGS;
use crate::kernels::step::Step;

params! {
    /// `struct Params` of `shaders/gather.wgsl`.
    struct Params {
        batch: u32, groups: u32, source_stride: u32, order_replica: u32, x_replica: u32,
        replicas: u32, chunk_start: u32, chunk_rows: u32,
        height: u32, width: u32, channels: u32, reach: u32,
    }
}

/// `shaders/gather.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "gather",
    source: shader!("gather"),
    params: Params::FIELDS,
    variants: || FLAGS.map(|[bytes, jitter]| constants(bytes, jitter)).to_vec(),
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&KERNEL];

fn constants(bytes: bool, jitter: bool) -> Constants {
    vec![("U8", Constant::Bool(bytes)), ("JITTER", Constant::Bool(jitter))]
}

/// Rows are images `[height, width, channels]` that move by up to `reach` pixels each way, drawn for each
/// step and row of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jitter {
    /// Of the image, in pixels.
    pub height: usize,
    /// Of the image, in pixels.
    pub width: usize,
    /// Numbers to a pixel.
    pub channels: usize,
    /// The most that an image moves.
    pub reach: usize,
}

/// The rows that a batch is gathered from: `[1, n, d]` as f32, or as bytes four to a word
/// (`[1, n, d / 4]` words).
#[derive(Clone, Debug)]
pub struct Source {
    /// The stored rows.
    pub rows: Tensor,
    /// Whether the words hold four bytes each.
    pub bytes: bool,
    /// Number of the first row, where the tensor is a chunk of a larger set.
    pub start: usize,
}

/// Records the gather of one batch into `x` `[r, batch, d]`. `order` is `[r or 1, 1, n]`,
/// `gain` and `shift` are `[1, 1, d]`, zero in their padding.
///
/// # Errors
/// As [`Plan::dispatch`].
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings, one each")]
pub fn record(
    plan: &mut Plan<'_>,
    label: &str,
    steps: &Tensor,
    order: &Tensor,
    source: &Source,
    gain: &Tensor,
    shift: &Tensor,
    jitter: Option<Jitter>,
    x: &Tensor,
) -> Result<()> {
    let [replicas, batch, _] = x.shape;
    let groups = x.row_stride / 4;
    let words = if source.bytes { groups } else { x.shape[2] };
    assert_eq!(source.rows.shape[2], words, "{label}: row widths differ");
    assert_eq!(gain.row_stride, x.row_stride);
    assert!(jitter.is_none_or(|j| j.height * j.width * j.channels == x.shape[2]), "{label}: not the image's size");
    let image = jitter.unwrap_or(Jitter { height: 0, width: 0, channels: 0, reach: 0 });
    plan.dispatch(Call {
        kernel: &KERNEL,
        constants: constants(source.bytes, jitter.is_some()),
        label,
        params: Params {
            batch: batch as u32,
            groups: groups as u32,
            source_stride: source.rows.row_stride as u32,
            order_replica: order.stride_for(replicas),
            x_replica: x.replica_stride as u32,
            // The ring's, not x's: one batch may be shared by all replicas, whose steps still lie side by side.
            replicas: (steps.shape[2] * 4 / size_of::<Step>()) as u32,
            chunk_start: source.start as u32,
            chunk_rows: source.rows.shape[1] as u32,
            height: image.height as u32,
            width: image.width as u32,
            channels: image.channels as u32,
            reach: image.reach as u32,
        },
        tensors: &[
            ("steps", steps),
            ("order", order),
            ("source", &source.rows),
            ("gain", gain),
            ("shift", shift),
            ("x", x),
        ],
        grid: [(batch * groups).div_ceil(64) as u32, 1, replicas as u32],
        work: Work::new(2 * x.span(), x.span() + replicas * batch * source.rows.row_stride),
    })
}
