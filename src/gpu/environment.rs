//! What drivers read from the environment when they are loaded, set before the first one is.

use std::path::PathBuf;

/// The name of lavapipe's number of threads beside the one that calls it.
pub const LAVAPIPE_THREADS: &str = "LP_NUM_THREADS";

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
}

/// Prepares the process for Vulkan drivers, and for a command whose steps have such a load, where it is known.
/// Called by the binary when there is no other thread; whatever the user has set wins.
///
/// - Small steps keep lavapipe to one thread. The bits do not depend on it.
/// - Mesa's shader cache takes no notice of `LP_NATIVE_VECTOR_WIDTH`, lavapipe's vector width, and
///   would hand one width's code to another: a width that the user chose gets a cache of its own.
/// - Without `XDG_RUNTIME_DIR` the loader prints a line that looks like an error and is none.
pub fn prepare(load: Option<Load>) {
    if load.is_some_and(|load| load.alone()) {
        default(LAVAPIPE_THREADS, "0");
    }
    if let Ok(width) = std::env::var("LP_NATIVE_VECTOR_WIDTH") {
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
        if let Some(cache) = cache {
            let folder = cache.join("limbeck").join(format!("mesa-{width}"));
            // Mesa makes one level itself. Without a cache it is only slower to start.
            let _ = std::fs::create_dir_all(&folder);
            default("MESA_SHADER_CACHE_DIR", &folder.to_string_lossy());
        }
    }
    #[cfg(target_os = "linux")]
    default("XDG_RUNTIME_DIR", &std::env::temp_dir().to_string_lossy());
}

fn default(name: &str, value: &str) {
    if std::env::var_os(name).is_none() {
        // SAFETY: changing the environment races with other threads that read it; `prepare` is
        // called when there is none.
        #[allow(unsafe_code, reason = "the only way to speak to a driver that is not loaded yet")]
        unsafe {
            std::env::set_var(name, value);
        }
    }
}
