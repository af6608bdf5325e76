//! A data set on the device, and the order in which its rows are taken.

use crate::data::{Dataset, Elements, UNLABELLED};
use crate::error::Result;
use crate::gpu::{Gpu, Plan, Tensor};
use crate::kernels::gather::{self, Source};

/// Resident rows, labels and the current epoch's order.
pub struct Feed {
    sources: Vec<Source>,
    gain: Tensor,
    shift: Tensor,
    /// Labels by row number, `[r or 1, 1, n]`.
    pub labels: Tensor,
    /// Row numbers of the epoch, `[r or 1, 1, n]`, written anew for each epoch.
    pub order: Tensor,
    features: usize,
}

impl Feed {
    /// Uploads `data`. `labels` overrides the set's own, one list for all replicas or one each;
    /// `orders` is the number of orders (1, or one per replica), each of `order_len` rows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device has no room for it.
    pub fn resident(
        gpu: &Gpu,
        data: &Dataset,
        labels: Option<&[Vec<u32>]>,
        orders: usize,
        order_len: usize,
    ) -> Result<Self> {
        let (rows, features) = (data.rows(), data.features());
        let own = || vec![data.labels.clone().unwrap_or_else(|| vec![UNLABELLED; rows])];
        let labels = labels.map_or_else(own, <[_]>::to_vec);
        Ok(Self {
            sources: upload_rows(gpu, data)?,
            gain: Tensor::upload(gpu, "data.gain", [1, 1, features], &vec![data.scale; features])?,
            shift: Tensor::zeros(gpu, "data.shift", [1, 1, features])?,
            labels: Tensor::upload(gpu, "data.labels", [labels.len(), 1, rows], &labels.concat())?,
            order: Tensor::zeros(gpu, "data.order", [orders, 1, order_len])?,
            features,
        })
    }

    /// Records the gather of the step's batch and returns its tensor `[orders, batch, features]`.
    ///
    /// # Errors
    /// As [`Plan::dispatch`].
    pub fn record(&self, plan: &mut Plan<'_>, steps: &Tensor, batch: usize) -> Result<Tensor> {
        let x = Tensor::zeros(plan.gpu, "x", [self.order.shape[0], batch, self.features])?;
        for source in &self.sources {
            gather::record(plan, "gather", steps, &self.order, source, &self.gain, &self.shift, &x)?;
        }
        Ok(x)
    }
}

/// Uploads the rows in chunks that a shader can see at once; usually one. Bytes stay bytes.
fn upload_rows(gpu: &Gpu, data: &Dataset) -> Result<Vec<Source>> {
    let (rows, features) = (data.rows(), data.features());
    let bytes = data.x.is_u8();
    let words = if bytes { features.div_ceil(4) } else { features };
    let row_bytes = words.next_multiple_of(4) * 4;
    let per_chunk = (gpu.max_binding() as usize / row_bytes).clamp(1, rows);
    let mut sources = Vec::new();
    for start in (0..rows).step_by(per_chunk) {
        let range = start..(start + per_chunk).min(rows);
        let tensor = Tensor::zeros(gpu, "data.x", [1, range.len(), words])?;
        // In pieces: the host copy of a large set stays small.
        let piece = (32 << 20) / row_bytes.max(1) + 1;
        for from in range.clone().step_by(piece) {
            let part = from..(from + piece).min(range.end);
            let index: Vec<u32> = part.clone().map(|i| i as u32).collect();
            let view = tensor.rows(part.start - start..part.end - start);
            if bytes {
                let mut raw = vec![0u8; index.len() * features];
                data.read_rows_u8(&index, &mut raw)?;
                view.write::<u32>(gpu, &pack(&raw, features))?;
            } else if let Elements::F32(all) = &data.x {
                view.write(gpu, &all[part.start * features..part.end * features])?;
            } else {
                let mut raw = vec![0f32; index.len() * features];
                data.read_rows(&index, &mut raw)?;
                view.write(gpu, &raw)?;
            }
        }
        sources.push(Source { rows: tensor, bytes, start });
    }
    Ok(sources)
}

/// Rows of bytes as rows of words, four to a word, the lowest byte first.
fn pack(raw: &[u8], features: usize) -> Vec<u32> {
    raw.chunks_exact(features)
        .flat_map(|row| row.chunks(4))
        .map(|four| four.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)))
        .collect()
}
