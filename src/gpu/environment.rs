//! What drivers read from the environment when they are loaded, set before the first one is.

use std::path::{Path, PathBuf};

use crate::gpu::profile::Profile;

/// The name of lavapipe's number of threads beside the one that calls it.
pub const LAVAPIPE_THREADS: &str = "LP_NUM_THREADS";
/// The name of lavapipe's vector width, in bits: 32 to a lane of a subgroup.
const LAVAPIPE_WIDTH: &str = "LP_NATIVE_VECTOR_WIDTH";

/// At most 16, where lavapipe's own threads end: a large machine is not to open dozens of devices.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(16)
}

/// The most of `students` that train on one device where lavapipe computes in the thread that calls it: every
/// core has a device of its own then, as long as two students or more share what their teacher says.
pub fn share(students: usize) -> usize {
    students.div_ceil(cores().min(students / 2).max(1))
}

/// FLOPs of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Of all students and their teacher.
    pub all: f64,
    /// Of the largest [`share`] of the students and their teacher.
    pub share: f64,
}

impl Load {
    /// Where a step of a number of students has `flops`.
    pub fn of(students: usize, flops: impl Fn(usize) -> f64) -> Self {
        Self { all: flops(students), share: flops(share(students)) }
    }

    /// What a core computes more, if lavapipe computes in the thread that calls it, than if all cores have
    /// equal parts of every dispatch.
    pub fn beyond(&self) -> f64 {
        self.share - self.all / cores() as f64
    }

    /// Whether lavapipe is done sooner if it computes in the thread that calls it than if it wakes others for
    /// every dispatch: for a single student with fewer than 16 MFLOP (docs/performance.md has the measurement).
    pub fn alone(&self) -> bool {
        self.beyond() <= 16e6 * (1.0 - 1.0 / cores() as f64)
    }

    /// What lavapipe is told before it runs steps of this load, as names and values of the environment: to compute
    /// small ones in the thread that calls it, and large ones in vectors of 512 bits where the CPU has them
    /// (docs/performance.md has the measurements). The bits depend on neither.
    pub fn settings(&self) -> Vec<(&'static str, &'static str)> {
        let alone = self.alone();
        let of_a_device = if alone { self.share } else { self.all };
        let wide = of_a_device >= WIDE_FROM && has_wide_vectors();
        [alone.then_some(ALONE), wide.then_some(WIDE)].into_iter().flatten().collect()
    }
}

/// FLOPs of a step from which on vectors of 512 bits make it faster.
const WIDE_FROM: f64 = 250e6;
/// What lavapipe is told before steps that it is to compute in the thread that calls it.
pub const ALONE: (&str, &str) = (LAVAPIPE_THREADS, "0");
/// What lavapipe is told before large steps, where the CPU has vectors of 512 bits.
pub const WIDE: (&str, &str) = (LAVAPIPE_WIDTH, "512");

/// Whether the CPU computes with vectors of 512 bits: F and what LLVM needs to compile for 32-bit lanes by it.
pub fn has_wide_vectors() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

/// Prepares the process for Vulkan drivers, and for a command whose steps have such a load, where it is known, by that
/// profile, where there is one. Called by the binary when there is no other thread; whatever the user has set wins.
///
/// - lavapipe is told the vector width that a profile of it belongs to, and what suits the load ([`Load::settings`]).
/// - Mesa's shader cache takes no notice of lavapipe's vector width and would hand one width's code to another: a
///   width that is told has a cache of its own, inside the user's where there is one.
/// - Without `XDG_RUNTIME_DIR` the loader prints a line that looks like an error and is none.
pub fn prepare(load: Option<Load>, profile: Option<&Path>) {
    if let Some(width) = profile.and_then(Profile::width) {
        default(LAVAPIPE_WIDTH, &width);
    }
    for (name, value) in load.iter().flat_map(|load| load.settings()) {
        default(name, value);
    }
    if let Ok(width) = std::env::var(LAVAPIPE_WIDTH) {
        let named = |name| std::env::var_os(name).map(PathBuf::from);
        let cache = named("MESA_SHADER_CACHE_DIR")
            .or_else(|| named("XDG_CACHE_HOME").map(|cache| cache.join("limbeck")))
            .or_else(|| named("HOME").map(|home| home.join(".cache/limbeck")));
        if let Some(cache) = cache {
            let folder = cache.join(format!("mesa-{width}"));
            // Mesa makes one level itself. Without a cache it is only slower to start.
            let _ = std::fs::create_dir_all(&folder);
            set("MESA_SHADER_CACHE_DIR", &folder.to_string_lossy());
        }
    }
    #[cfg(target_os = "linux")]
    default("XDG_RUNTIME_DIR", &std::env::temp_dir().to_string_lossy());
}

/// Ends the process without the exit handlers of the libraries in it: a driver's tidy up what other threads still use. On
/// an H200 a process that left through them in the middle of a step ended with another code than it was given.
pub fn exit_at_once(code: i32) -> ! {
    #[allow(unsafe_code, reason = "the C library's own, everywhere")]
    unsafe extern "C" {
        safe fn _exit(code: std::ffi::c_int) -> !;
    }
    _exit(code)
}

fn default(name: &str, value: &str) {
    if std::env::var_os(name).is_none() {
        set(name, value);
    }
}

fn set(name: &str, value: &str) {
    // SAFETY: changing the environment races with other threads that read it; `prepare` is
    // called when there is none.
    #[allow(unsafe_code, reason = "the only way to speak to a driver that is not loaded yet")]
    unsafe {
        std::env::set_var(name, value);
    }
}
