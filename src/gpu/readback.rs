//! Results that arrive late: copied on the device, mapped when ready, never waited for in the loop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::program::{self, Part};
use crate::gpu::tensor::{Tensor, staging};

/// Submissions that may be under way at once. One runs, one waits behind it so that the device
/// never idles, one is being encoded; more would only let the host run away from the device.
const IN_FLIGHT: usize = 3;

const PENDING: u8 = 0;
const READY: u8 = 1;
const FAILED: u8 = 2;

struct Flight<T> {
    submission: wgpu::SubmissionIndex,
    copy: Option<(T, wgpu::Buffer, u64, Arc<AtomicU8>)>,
}

/// A queue of submissions, some of which carry rows back. `T` says what a row set is.
pub struct Flights<T> {
    flying: VecDeque<Flight<T>>,
    spare: Vec<wgpu::Buffer>,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self { flying: VecDeque::new(), spare: Vec::new() }
    }
}

impl<T> Flights<T> {
    /// Submits the parts in order and, with `copy`, a copy of a tensor's span after them.
    /// Waits only where `IN_FLIGHT` submissions are already under way, for the oldest.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or refuses.
    pub fn submit(&mut self, gpu: &Gpu, parts: &[Part<'_>], copy: Option<(T, &Tensor)>) -> Result<()> {
        let run = program::encode(gpu, parts)?;
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        let copy = match copy {
            None => None,
            Some((what, tensor)) => {
                let bytes = (tensor.span() * 4) as u64;
                let at = self.spare.iter().position(|b| b.size() >= bytes);
                let buffer = match at {
                    Some(i) => self.spare.swap_remove(i),
                    None => gpu.guarded("allocate readback", || staging(gpu, bytes))?,
                };
                encoder.copy_buffer_to_buffer(&tensor.buffer, (tensor.offset * 4) as u64, &buffer, 0, bytes);
                Some((what, buffer, bytes))
            }
        };
        let submission = gpu.queue.submit([run, encoder.finish()]);
        let copy = copy.map(|(what, buffer, bytes)| {
            let state = Arc::new(AtomicU8::new(PENDING));
            let report = state.clone();
            buffer.map_async(wgpu::MapMode::Read, ..bytes, move |result| {
                let value = if result.is_ok() { READY } else { FAILED };
                report.store(value, Ordering::Release);
            });
            (what, buffer, bytes, state)
        });
        self.flying.push_back(Flight { submission, copy });
        if self.flying.len() >= IN_FLIGHT {
            let oldest = self.flying.front().map(|f| f.submission.clone());
            gpu.wait(oldest)
        } else {
            gpu.poll()
        }
    }

    /// Hands out, oldest first, what has arrived; with `all`, waits for everything.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or a copy failed.
    pub fn arrived(&mut self, gpu: &Gpu, all: bool) -> Result<Vec<(T, Vec<u32>)>> {
        if all {
            gpu.wait(None)?;
        }
        let mut rows = Vec::new();
        while self.flying.len() >= IN_FLIGHT || (all && !self.flying.is_empty()) || self.front_ready() {
            let Some(flight) = self.flying.pop_front() else { break };
            let Some((what, buffer, bytes, state)) = flight.copy else {
                continue;
            };
            if state.load(Ordering::Acquire) == PENDING {
                gpu.wait(Some(flight.submission))?;
            }
            if state.load(Ordering::Acquire) != READY {
                gpu.check()?;
                return Err(Error::device("read metrics", "the copy could not be mapped"));
            }
            let view =
                buffer.get_mapped_range(..bytes).map_err(|e| Error::device("read metrics", e.to_string()))?;
            let data = bytemuck::pod_collect_to_vec(&view);
            drop(view);
            buffer.unmap();
            self.spare.push(buffer);
            rows.push((what, data));
        }
        Ok(rows)
    }

    fn front_ready(&self) -> bool {
        self.flying.front().is_some_and(|f| {
            f.copy.as_ref().is_some_and(|(_, _, _, state)| state.load(Ordering::Acquire) == READY)
        })
    }
}
