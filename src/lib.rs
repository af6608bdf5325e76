//! limbeck: knowledge distillation of multi-layer perceptrons on any GPU.
//!
//! Hand-written WGSL kernels train an MLP teacher and distil an MLP student from it through wgpu;
//! a host-side scheduler runs the loop. The rooms, each of which imports only from those above it:
//!
//! ```text
//! error       one Error: what, where, expected, found, what to do
//! rng         one counter-based generator, no state but seed and counter
//! reference   the whole algorithm in f64 on the CPU: the oracle       (imports nothing)
//! data        data sets and formats, splits
//! gpu         devices, tensors, pipelines, plans, readback            (knows no mathematics)
//! kernels     one kernel each: a shader and its twin                  (knows no models)
//! mlp         layers, parameters, forward and backward side by side
//! distill     the step: data and teacher in, loss head, optimiser
//! report      files, tables, intervals, progress                     (imports data alone)
//! train       the loop; the run directory, checkpoints, resuming
//! verify      every kernel held to the reference, on any device
//! bench       the kernel and step benchmark harness
//! cli         one file per subcommand
//! ```
//!
//! The one path of a batch: the step is recorded once as a [`gpu::Plan`] and closed into a
//! [`gpu::Program`]; [`train::Run`] submits it many times, several steps to a submission, and
//! receives the metrics late, without waiting.

pub mod bench;
pub mod cli;
pub mod data;
pub mod distill;
pub mod error;
pub mod gpu;
pub mod kernels;
pub mod mlp;
pub mod reference;
pub mod report;
pub mod rng;
pub mod train;
pub mod verify;

pub use error::{Error, Result};
