//! An open device, what it can do, and how its faults reach the caller as errors.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::gpu::adapter::{AdapterChoice, AdapterReport, choose, enumerate};
use crate::gpu::direct;
use crate::gpu::environment::{self, LAVAPIPE_THREADS};
use crate::gpu::image;
use crate::gpu::pipeline::PipelineCache;
use crate::gpu::profile::Profile;
use crate::gpu::tensor::Tensor;

/// Features that are taken where the adapter has them; nothing needs them to be right.
const WELCOME: wgpu::Features = wgpu::Features::SUBGROUP
    .union(wgpu::Features::TIMESTAMP_QUERY)
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SHADER_INT64);

/// The first fault that the device reported by itself, kept until somebody asks.
#[derive(Clone, Default)]
struct Faults(Arc<Mutex<Option<(String, String)>>>);

impl Faults {
    fn put(&self, op: &str, what: String) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert((op.to_owned(), what));
    }

    fn get(&self) -> Option<(String, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An open device with its queue, limits and pipeline cache. Everything else borrows it.
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) limits: wgpu::Limits,
    pub(crate) pipelines: PipelineCache,
    /// What was opened.
    pub report: AdapterReport,
    /// Whether shaders keep naga's run-time checks.
    pub checked: bool,
    /// Answers measured earlier on this device; empty unless a profile was named.
    pub profile: Profile,
    twins: bool,
    direct: bool,
    choice: AdapterChoice,
    faults: Faults,
    nothing: OnceLock<Tensor>,
    avoided: Mutex<BTreeSet<String>>,
    rates: Mutex<BTreeMap<String, f64>>,
}

impl Gpu {
    /// Opens the adapter that `choice` names, or the best one.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] where none is usable or none matches; [`Error::Device`] where the
    /// driver refuses to open it.
    pub fn open(choice: &AdapterChoice) -> Result<Self> {
        let adapters = enumerate(choice)?;
        let mut reports: Vec<_> =
            adapters.iter().enumerate().map(|(i, a)| AdapterReport::new(i, a)).collect();
        let index = choose(&reports, choice)?;
        let adapter = &adapters[index];
        let mut report = reports.swap_remove(index);
        report.chosen = true;
        let profile = match &choice.profile {
            Some(path) => Profile::load(path, &report)?,
            None => Profile::empty(&report),
        };

        let has = adapter.limits();
        // A device gets exactly what is asked for: the few limits that matter are raised to the
        // adapter's own, the rest stay at the lowest common set.
        let limits = wgpu::Limits {
            max_buffer_size: has.max_buffer_size,
            max_storage_buffer_binding_size: has.max_storage_buffer_binding_size,
            max_texture_dimension_2d: has.max_texture_dimension_2d,
            max_storage_textures_per_shader_stage: has.max_storage_textures_per_shader_stage.min(16),
            max_storage_buffers_per_shader_stage: has.max_storage_buffers_per_shader_stage.min(16),
            max_compute_workgroup_storage_size: has.max_compute_workgroup_storage_size,
            max_compute_invocations_per_workgroup: has.max_compute_invocations_per_workgroup,
            max_compute_workgroup_size_x: has.max_compute_workgroup_size_x,
            max_compute_workgroup_size_y: has.max_compute_workgroup_size_y,
            max_compute_workgroup_size_z: has.max_compute_workgroup_size_z,
            max_compute_workgroups_per_dimension: has.max_compute_workgroups_per_dimension,
            min_uniform_buffer_offset_alignment: has.min_uniform_buffer_offset_alignment,
            min_storage_buffer_offset_alignment: has.min_storage_buffer_offset_alignment,
            ..wgpu::Limits::downlevel_defaults()
        };
        let features = adapter.features() & WELCOME;
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("limbeck"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: wgpu::ExperimentalFeatures::disabled(),
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        }))
        .map_err(|e| Error::device("open device", format!("{}: {e}", report.name)))?;

        let faults = Faults::default();
        let sink = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            // Dropping our own device also lands here; nobody is left to ask then.
            sink.put("device lost", format!("{reason:?}: {message}"));
        });
        let sink = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error| sink.put("device", error.to_string())));

        let twins = report.is_lavapipe()
            && features.contains(wgpu::Features::SHADER_INT64)
            && image::can_lie_over_tensors(&device, &limits);
        let direct = !choice.checked && direct::reaches(&device);
        Ok(Self {
            device,
            queue,
            limits,
            pipelines: PipelineCache::default(),
            report,
            checked: choice.checked,
            profile,
            twins,
            direct,
            choice: choice.clone(),
            faults,
            nothing: OnceLock::new(),
            avoided: Mutex::default(),
            rates: Mutex::default(),
        })
    }

    /// One more device of the same adapter, so that both compute at the same time: with an instance of its own,
    /// since lavapipe lets the devices of one instance take turns.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub fn beside(&self) -> Result<Self> {
        let other = Self::open(&self.choice)?;
        self.avoided().iter().for_each(|kernel| other.avoid(kernel));
        Ok(other)
    }

    /// The most of `students` that are to train on one device; the others have devices [`Gpu::beside`] it.
    /// All of them but where lavapipe computes in the thread that calls it.
    pub fn share(&self, students: usize) -> usize {
        let alone = self.is_lavapipe() && std::env::var_os(LAVAPIPE_THREADS).is_some_and(|n| n == "0");
        if alone { environment::share(students) } else { students }
    }

    /// The largest part of a buffer that a shader can see at once, in bytes.
    pub fn max_binding(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size
    }

    /// Rows of so many f32 columns that a shader can see at once.
    pub fn rows_of(&self, columns: usize) -> usize {
        (self.max_binding() / (4 * columns.next_multiple_of(4).max(4)) as u64) as usize
    }

    /// True where the pipeline can rely on exactly `lanes` lanes to a subgroup.
    pub fn has_subgroups_of(&self, lanes: u32) -> bool {
        self.report.subgroups && self.report.subgroup == [lanes, lanes]
    }

    /// See [`AdapterReport::is_lavapipe`].
    pub fn is_lavapipe(&self) -> bool {
        self.report.is_lavapipe()
    }

    /// True where kernels get their storage in other forms ([`crate::gpu::twins`]).
    pub fn takes_twins(&self) -> bool {
        self.twins
    }

    /// True where dispatches are encoded past wgpu ([`crate::gpu::direct`]).
    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    /// From now on, a kernel that is one of several for the same work is not chosen on this device:
    /// it was found to be wrong here.
    pub fn avoid(&self, kernel: &str) {
        self.avoided.lock().unwrap_or_else(PoisonError::into_inner).insert(kernel.to_owned());
    }

    /// Whether [`Gpu::avoid`] was said of it: what chooses among kernels has to ask.
    pub fn avoids(&self, kernel: &str) -> bool {
        self.avoided.lock().unwrap_or_else(PoisonError::into_inner).contains(kernel)
    }

    /// What [`Gpu::avoid`] was said of, in order.
    pub fn avoided(&self) -> Vec<String> {
        self.avoided.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// How fast something runs on this device, measured when it is first asked for. Nothing that
    /// changes a bit of a result may go by it.
    pub(crate) fn rate(&self, what: &str, measure: impl FnOnce() -> Result<f64>) -> Result<f64> {
        let rates = || self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rate) = rates().get(what) {
            return Ok(*rate);
        }
        let rate = measure()?;
        rates().insert(what.to_owned(), rate);
        Ok(rate)
    }

    /// A scrap of memory to bind where a shader's variant declares a tensor but does not touch it.
    pub(crate) fn nothing(&self) -> Result<Tensor> {
        if let Some(scrap) = self.nothing.get() {
            return Ok(scrap.clone());
        }
        let scrap = Tensor::zeros(self, "nothing", [1, 1, 4])?;
        Ok(self.nothing.get_or_init(|| scrap).clone())
    }

    /// Whether `tensor` is that scrap.
    pub(crate) fn is_nothing(&self, tensor: &Tensor) -> bool {
        self.nothing.get().is_some_and(|nothing| nothing.buffer == tensor.buffer)
    }

    /// The first fault that the device has reported so far, as an error.
    ///
    /// # Errors
    /// [`Error::Device`], with the device's own words.
    pub fn check(&self) -> Result<()> {
        match self.faults.get() {
            None => Ok(()),
            Some((op, what)) => Err(Error::device(op, what).with_hint(
                "the device is gone for this run; a lost device is often a watchdog (a dispatch that took too long) or a driver update",
            )),
        }
    }

    /// Loses the device on purpose, as a driver reset would: the fault-injection point of the tests.
    pub fn lose(&self) {
        self.device.destroy();
        // A device that is really lost reports at once; a destroyed one only when its queue is empty.
        self.faults.put("device lost", "destroyed on request".to_owned());
    }

    /// Runs `what`, turning the device's refusals in it (validation, memory) into errors.
    pub(crate) fn guarded<T>(&self, op: &str, what: impl FnOnce() -> T) -> Result<T> {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let value = what();
        let internal = pollster::block_on(internal.pop());
        let validation = pollster::block_on(validation.pop());
        let memory = pollster::block_on(memory.pop());
        match internal.or(validation).or(memory) {
            // A lost device fails no scope: it hands out dead objects and reports to the sink.
            None => self.check().map(|()| value),
            Some(error) => Err(Error::device(op, error.to_string())),
        }
    }

    /// Makes progress on callbacks without waiting.
    pub(crate) fn poll(&self) -> Result<()> {
        self.poll_with(wgpu::PollType::Poll)
    }

    /// Waits for a submission, or with `None` for all of them. One of the two named waits.
    pub(crate) fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.poll_with(until(submission))
    }

    fn poll_with(&self, how: wgpu::PollType) -> Result<()> {
        self.check()?;
        match polled(&self.device, how) {
            Some(Ok(_)) => self.check(),
            Some(Err(e)) => Err(Error::device("wait for the device", e.to_string())),
            None => {
                self.faults.put("device lost", "the driver gave up while polling".to_owned());
                self.check()
            }
        }
    }

    /// Waits until all submitted work is done.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost or reported a fault.
    pub fn wait_blocking(&self) -> Result<()> {
        self.wait(None)
    }
}

/// How to wait for a submission, or with `None` for all of them.
pub(super) fn until(submission_index: Option<wgpu::SubmissionIndex>) -> wgpu::PollType {
    wgpu::PollType::Wait { submission_index, timeout: Some(Duration::from_secs(600)) }
}

/// Polls; `None` where the device is lost, for which wgpu panics: for us that is an error like any other.
pub(super) fn polled(
    device: &wgpu::Device,
    how: wgpu::PollType,
) -> Option<std::result::Result<wgpu::PollStatus, wgpu::PollError>> {
    QUIET.with(|quiet| {
        quiet.set(true);
        let polled = catch_unwind(AssertUnwindSafe(|| device.poll(how)));
        quiet.set(false);
        polled.ok()
    })
}

thread_local! {
    static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Keeps the panic that wgpu raises on a lost device (and that [`Gpu`] turns into an error) off the
/// user's screen. Called once by the binary.
pub fn install_panic_hook() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !QUIET.with(std::cell::Cell::get) {
            before(info);
        }
    }));
}
