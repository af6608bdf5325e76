//! Logits of whole data sets, batch by batch: for evaluation, and for a teacher's cached logits.

use std::ops::Range;

use crate::data::{Dataset, Normalisation};
use crate::distill::feed::Feed;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Plan, Program, Tensor};
use crate::kernels::step;
use crate::mlp::Mlp;

/// A network's forward pass over a data set, whose rows are streamed: each is used once.
pub struct Inference<'d> {
    program: Program,
    ring: Tensor,
    output: Tensor,
    feed: Feed<'d>,
    order: Vec<u32>,
}

impl<'d> Inference<'d> {
    /// Records the forward pass of `network` (all its replicas) over `data` in file order, with the
    /// data's normalisation; `batch` rows at a time, or as many as a shader can see at once.
    ///
    /// # Errors
    /// [`Error::Usage`] where the network's inputs are not the data's features.
    pub fn record(gpu: &Gpu, network: &Mlp, data: &'d Dataset, batch: usize) -> Result<Self> {
        Self::record_as(gpu, network, data, None, batch)
    }

    /// The same with the network's own normalisation.
    ///
    /// # Errors
    /// As [`Inference::record`].
    pub fn record_as(
        gpu: &Gpu,
        network: &Mlp,
        data: &'d Dataset,
        normalisation: Option<&Normalisation>,
        batch: usize,
    ) -> Result<Self> {
        check_inputs(&network.sizes, data)?;
        let rows = data.rows();
        let widest = network.sizes.iter().copied().max().unwrap_or(1) * network.whole.shape[0];
        let batch = batch.min(rows).min(gpu.rows_of(widest).max(1));
        let feed = Feed::streamed(gpu, data, rows, batch, 2)?;
        let ring = step::ring(gpu, 1)?;
        let mut plan = Plan::new(gpu);
        let x = feed.record(&mut plan, &ring, batch, normalisation)?;
        let output = network.record_forward(&mut plan, &x)?.logits().clone();
        let order = (0..rows as u32).collect();
        Ok(Self { program: plan.finish()?, ring, output, feed, order })
    }

    fn batches(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let batch = self.output.shape[1];
        rows.clone().step_by(batch).map(move |start| start..(start + batch).min(rows.end))
    }

    fn submit(&self, gpu: &Gpu, rows: &Range<usize>) -> Result<()> {
        self.feed.stage(gpu, &self.order, rows.clone())?;
        let scalars =
            step::Step { row_start: rows.start as u32, rows: rows.len() as u32, ..step::Step::default() };
        step::write(gpu, &self.ring, &[scalars])?;
        self.program.submit(gpu, 1)
    }

    /// Hands every batch's logits to `sink`: the row range and `[r, rows, classes]`, tight.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost.
    pub fn each_blocking(
        &self,
        gpu: &Gpu,
        sink: impl FnMut(Range<usize>, Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        self.each_of_blocking(gpu, 0..self.order.len(), sink)
    }

    /// The same for the rows of a range. A short last batch runs as the full one does, with rows of
    /// zeros, so the bits of a row do not depend on where a range is cut.
    ///
    /// # Errors
    /// As [`Inference::each_blocking`].
    pub fn each_of_blocking(
        &self,
        gpu: &Gpu,
        rows: Range<usize>,
        mut sink: impl FnMut(Range<usize>, Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        for rows in self.batches(rows) {
            self.submit(gpu, &rows)?;
            let logits = self.output.rows(0..rows.len()).read_blocking(gpu)?;
            sink(rows, logits)?;
        }
        Ok(())
    }

    /// All logits on the host, per replica `[rows, classes]`, tight.
    ///
    /// # Errors
    /// As [`Inference::each_blocking`].
    pub fn logits_blocking(&self, gpu: &Gpu) -> Result<Vec<Vec<f32>>> {
        let mut all = vec![Vec::new(); self.output.shape[0]];
        self.each_blocking(gpu, |rows, logits| {
            let per_replica = rows.len() * self.output.shape[2];
            for (to, part) in all.iter_mut().zip(logits.chunks_exact(per_replica)) {
                to.extend_from_slice(part);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// All logits on the device, `[1, rows, classes]`: one replica's, for a cached teacher. Each
    /// batch is computed exactly as a training step of the same batch size would.
    ///
    /// # Errors
    /// [`Error::Device`] where the device has no room.
    pub fn cache(&self, gpu: &Gpu) -> Result<Tensor> {
        let rows = self.order.len();
        let cache = Tensor::zeros(gpu, "teacher.logits", [1, rows, self.output.shape[2]])?;
        for rows in self.batches(0..rows) {
            self.submit(gpu, &rows)?;
            self.output.replica(0).rows(0..rows.len()).copy_to(gpu, &cache.rows(rows));
        }
        gpu.check()?;
        Ok(cache)
    }
}

/// # Errors
/// [`Error::Usage`] where the first layer does not take the data's features.
pub fn check_inputs(sizes: &[usize], data: &Dataset) -> Result<()> {
    if sizes.first() == Some(&data.features()) {
        return Ok(());
    }
    Err(Error::usage(
        "layers",
        format!("{} inputs, the data's features", data.features()),
        format!("{} inputs", sizes.first().unwrap_or(&0)),
    ))
}
