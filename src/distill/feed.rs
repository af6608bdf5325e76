//! A data set on the device, whole or as a window that runs ahead of the steps, and the order in
//! which its rows are taken.
//!
//! ```text
//! resident   order[p] = row                 gather reads source[row]
//! streamed   the host stages row order[p]   gather reads source[p mod capacity]
//!            into slot p mod capacity
//! ```
//! Both ways the same kernel multiplies the same stored bits by the same factors, so a streamed run
//! gives the bits of a resident one. Labels and cached logits are found by true row number either way.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::data::{Dataset, Elements, Normalisation, UNLABELLED};
use crate::error::{Error, Result};
use crate::gpu::program::SLOTS;
use crate::gpu::{Gpu, Plan, Tensor};
use crate::kernels::gather::{self, Jitter, Source};

/// Rows, labels and the current epoch's order.
pub struct Feed<'d> {
    sources: Vec<Source>,
    normalisation: Normalisation,
    affine: Affine,
    /// Labels by row number, `[r or 1, 1, n]`.
    pub labels: Tensor,
    /// Row numbers of the epoch, `[r or 1, 1, n]`, written anew for each epoch.
    pub order: Tensor,
    features: usize,
    stream: Option<Stream<'d>>,
    jitter: Option<Jitter>,
}

/// A window of `capacity` rows per order: while the device takes rows from one half, the host fills
/// the other.
struct Stream<'d> {
    data: Held<'d>,
    /// The slot of each position of the epoch, in the place of `order`.
    slots: Tensor,
    capacity: usize,
}

/// Rows that outlive the feed, or that it keeps alive.
#[derive(Clone)]
enum Held<'d> {
    Borrowed(&'d Dataset),
    Shared(Arc<Dataset>),
}

impl Deref for Held<'_> {
    type Target = Dataset;

    fn deref(&self) -> &Dataset {
        match self {
            Self::Borrowed(data) => data,
            Self::Shared(data) => data,
        }
    }
}

/// Gain and shift per feature, `[1, 1, d]`.
struct Affine {
    gain: Tensor,
    shift: Tensor,
}

impl Affine {
    fn upload(gpu: &Gpu, normalisation: &Normalisation, features: usize) -> Result<Self> {
        let [gain, shift] = normalisation.gain_and_shift(features);
        Ok(Self {
            gain: Tensor::upload(gpu, "data.gain", [1, 1, features], &gain)?,
            shift: Tensor::upload(gpu, "data.shift", [1, 1, features], &shift)?,
        })
    }
}

/// Words of a row on the device, without padding. Bytes stay bytes, four to a word.
fn words(data: &Dataset) -> usize {
    if data.x.is_u8() { data.features().div_ceil(4) } else { data.features() }
}

/// What a row takes on the device.
fn row_bytes(data: &Dataset) -> u64 {
    words(data).next_multiple_of(4) as u64 * 4
}

impl<'d> Feed<'d> {
    /// Uploads `data`, or prepares to stream it where its rows take more than `memory` bytes of the
    /// device. Without `memory`, rows that stay in their file are streamed, and so is what the device
    /// has no room for. `labels` overrides the set's own, one list for all replicas or one each;
    /// `orders` is the number of orders (1, or one per replica), each of `order_len` rows, taken
    /// `batch` at a time.
    ///
    /// # Errors
    /// [`Error::Usage`] where `memory` does not hold two batches; [`Error::Device`] where the device
    /// has no room.
    pub fn new(
        gpu: &Gpu,
        data: &'d Dataset,
        labels: Option<&[Vec<u32>]>,
        [orders, order_len]: [usize; 2],
        batch: usize,
        memory: Option<u64>,
    ) -> Result<Self> {
        let held = Held::Borrowed(data);
        Self::choose(gpu, held, labels, [orders, order_len], batch, memory)
    }

    fn choose(
        gpu: &Gpu,
        data: Held<'d>,
        labels: Option<&[Vec<u32>]>,
        [orders, order_len]: [usize; 2],
        batch: usize,
        memory: Option<u64>,
    ) -> Result<Self> {
        let whole = row_bytes(&data) * data.rows() as u64;
        let stays = match memory {
            Some(budget) => whole <= budget,
            None => !matches!(data.x, Elements::File(_)),
        };
        if stays {
            match Self::resident(gpu, &data, labels, orders, order_len) {
                // Too much for the device: stream it, which needs little.
                Err(Error::Device { .. }) if memory.is_none() && gpu.check().is_ok() => {}
                other => return other,
            }
        }
        let mut most = 2 * SLOTS as usize;
        loop {
            match Self::window(gpu, data.clone(), labels, [orders, order_len], batch, memory, most) {
                // Not even for the window: a smaller one.
                Err(Error::Device { .. }) if memory.is_none() && most > 2 && gpu.check().is_ok() => most /= 2,
                other => return other,
            }
        }
    }

    /// More columns of the same rows, such as a teacher's logits: taken in the same order, staged beside
    /// them. Kept alive by the feed.
    ///
    /// # Errors
    /// As [`Feed::new`].
    pub fn beside(
        &self,
        gpu: &Gpu,
        data: Arc<Dataset>,
        batch: usize,
        memory: Option<u64>,
    ) -> Result<Feed<'static>> {
        let [orders, _, order_len] = self.order.shape;
        let mut feed = Feed::choose(gpu, Held::Shared(data), None, [orders, order_len], batch, memory)?;
        feed.order = self.order.clone();
        Ok(feed)
    }

    /// Uploads `data` whole.
    ///
    /// # Errors
    /// [`Error::Device`] where the device has no room for it.
    pub fn resident(
        gpu: &Gpu,
        data: &Dataset,
        labels: Option<&[Vec<u32>]>,
        orders: usize,
        order_len: usize,
    ) -> Result<Self> {
        let sources = upload_rows(gpu, data)?;
        Self::around(gpu, data, labels, [orders, order_len], sources, None)
    }

    /// One order and a window of `most` batches, an even number.
    pub(crate) fn streamed(
        gpu: &Gpu,
        data: &'d Dataset,
        order_len: usize,
        batch: usize,
        most: usize,
    ) -> Result<Self> {
        Self::window(gpu, Held::Borrowed(data), None, [1, order_len], batch, None, most)
    }

    fn window(
        gpu: &Gpu,
        data: Held<'d>,
        labels: Option<&[Vec<u32>]>,
        [orders, order_len]: [usize; 2],
        batch: usize,
        memory: Option<u64>,
        most: usize,
    ) -> Result<Self> {
        let row = row_bytes(&data) * orders as u64;
        let least = 2 * batch as u64 * row;
        let budget = memory.unwrap_or(256 << 20).min(gpu.max_binding());
        if memory.is_some() && least > budget {
            return Err(Error::usage(
                "--device-memory",
                format!("at least {least} bytes, two batches of {batch} rows"),
                format!("{budget} bytes"),
            ));
        }
        let most = most.min(order_len.div_ceil(batch).next_multiple_of(2)).max(2) as u64;
        let batches = (budget / (batch as u64 * row)).clamp(2, most) as usize;
        let capacity = batches / 2 * 2 * batch;
        let rows = Tensor::zeros(gpu, "data.window", [1, orders * capacity, words(&data)])?;
        let slots: Vec<u32> = (0..orders)
            .flat_map(|r| (0..order_len).map(move |p| (r * capacity + p % capacity) as u32))
            .collect();
        let slots = Tensor::upload(gpu, "data.slots", [orders, 1, order_len], &slots)?;
        let sources = vec![Source { rows, bytes: data.x.is_u8(), start: 0 }];
        let mut feed = Self::around(gpu, &data, labels, [orders, order_len], sources, None)?;
        feed.stream = Some(Stream { data, slots, capacity });
        Ok(feed)
    }

    fn around(
        gpu: &Gpu,
        data: &Dataset,
        labels: Option<&[Vec<u32>]>,
        [orders, order_len]: [usize; 2],
        sources: Vec<Source>,
        stream: Option<Stream<'d>>,
    ) -> Result<Self> {
        let (rows, features) = (data.rows(), data.features());
        let own = || vec![data.labels.clone().unwrap_or_else(|| vec![UNLABELLED; rows])];
        let labels = labels.map_or_else(own, <[_]>::to_vec);
        Ok(Self {
            sources,
            normalisation: data.normalisation.clone(),
            affine: Affine::upload(gpu, &data.normalisation, features)?,
            labels: Tensor::upload(gpu, "data.labels", [labels.len(), 1, rows], &labels.concat())?,
            order: Tensor::zeros(gpu, "data.order", [orders, 1, order_len])?,
            features,
            stream,
            jitter: None,
        })
    }

    /// The same with rows that are images moved a little in each batch.
    #[must_use]
    pub fn jittered(self, jitter: Option<Jitter>) -> Self {
        Self { jitter, ..self }
    }

    /// Records the gather of the step's batch, with the given normalisation in the place of the data's
    /// where there is one, and returns its tensor `[orders, batch, features]`.
    ///
    /// # Errors
    /// [`Error::Usage`] where the normalisation is for other features; as [`Plan::dispatch`].
    pub fn record(
        &self,
        plan: &mut Plan<'_>,
        steps: &Tensor,
        batch: usize,
        normalisation: Option<&Normalisation>,
    ) -> Result<Tensor> {
        let Some(own) = normalisation.filter(|n| **n != self.normalisation) else {
            return self.record_gather(plan, "x", steps, &self.affine, batch);
        };
        own.check(self.features)?;
        let affine = Affine::upload(plan.gpu, own, self.features)?;
        self.record_gather(plan, "teacher.x", steps, &affine, batch)
    }

    /// Whether a network with this normalisation takes the data's batches as they are.
    pub fn suits(&self, normalisation: Option<&Normalisation>) -> bool {
        normalisation.is_none_or(|n| *n == self.normalisation)
    }

    fn record_gather(
        &self,
        plan: &mut Plan<'_>,
        name: &str,
        steps: &Tensor,
        affine: &Affine,
        batch: usize,
    ) -> Result<Tensor> {
        let x = Tensor::zeros(plan.gpu, name, [self.order.shape[0], batch, self.features])?;
        let order = self.stream.as_ref().map_or(&self.order, |s| &s.slots);
        for source in &self.sources {
            let Affine { gain, shift } = affine;
            gather::record(plan, "gather", steps, order, source, gain, shift, self.jitter, &x)?;
        }
        Ok(x)
    }

    /// Whether rows are streamed.
    pub fn is_streamed(&self) -> bool {
        self.stream.is_some()
    }

    /// The most rows of an epoch that one submission may walk.
    pub fn rows_at_once(&self) -> usize {
        self.stream.as_ref().map_or(usize::MAX, |s| s.capacity / 2)
    }

    /// Puts the rows at `positions` of the epoch's `order` (all orders, one after the other) on the
    /// device before the next submission. Does nothing for a resident set.
    ///
    /// The queue runs this copy after the submissions before it, so rows that they still read are
    /// safe; the reading and the staging here overlap with them.
    ///
    /// # Errors
    /// As [`Dataset::read_rows`]; [`Error::Device`].
    pub fn stage(&self, gpu: &Gpu, order: &[u32], positions: Range<usize>) -> Result<()> {
        let Some(stream) = &self.stream else { return Ok(()) };
        assert!(positions.len() <= stream.capacity, "a submission longer than the window");
        let window = &self.sources[0].rows;
        for (r, order) in order.chunks_exact(self.order.shape[2]).enumerate() {
            let mut at = positions.start;
            while at < positions.end {
                let slot = at % stream.capacity;
                let count = (stream.capacity - slot).min(positions.end - at);
                let first = r * stream.capacity + slot;
                write_rows(gpu, &window.rows(first..first + count), &stream.data, &order[at..at + count])?;
                at += count;
            }
        }
        Ok(())
    }
}

/// Writes the rows of `index` into `view`, one below the other, as they are stored.
fn write_rows(gpu: &Gpu, view: &Tensor, data: &Dataset, index: &[u32]) -> Result<()> {
    let features = data.features();
    if data.x.is_u8() {
        let mut raw = vec![0u8; index.len() * features];
        data.read_rows_u8(index, &mut raw)?;
        view.write::<u32>(gpu, &pack(&raw, features))
    } else {
        let mut raw = vec![0f32; index.len() * features];
        data.read_rows(index, &mut raw)?;
        view.write(gpu, &raw)
    }
}

/// Uploads the rows in chunks that a shader can see at once; usually one.
fn upload_rows(gpu: &Gpu, data: &Dataset) -> Result<Vec<Source>> {
    let (rows, row_bytes) = (data.rows(), row_bytes(data) as usize);
    let per_chunk = (gpu.max_binding() as usize / row_bytes).clamp(1, rows);
    let mut sources = Vec::new();
    for start in (0..rows).step_by(per_chunk) {
        let range = start..(start + per_chunk).min(rows);
        let tensor = Tensor::zeros(gpu, "data.x", [1, range.len(), words(data)])?;
        // In pieces: the host copy of a large set stays small.
        let piece = (32 << 20) / row_bytes.max(1) + 1;
        for from in range.clone().step_by(piece) {
            let part = from..(from + piece).min(range.end);
            let index: Vec<u32> = part.clone().map(|i| i as u32).collect();
            write_rows(gpu, &tensor.rows(part.start - start..part.end - start), data, &index)?;
        }
        sources.push(Source { rows: tensor, bytes: data.x.is_u8(), start });
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
