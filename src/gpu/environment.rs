//! What drivers read from the environment when they are loaded, set before the first one is.

use std::path::PathBuf;

/// The name of lavapipe's number of threads beside the one that calls it.
pub const LAVAPIPE_THREADS: &str = "LP_NUM_THREADS";

/// Whether lavapipe is done sooner with steps of so many FLOPs if it computes them in the thread that walks
/// the commands, than if it wakes others for every dispatch (docs/performance.md has the measurement).
pub fn alone(step_flops: f64) -> bool {
    step_flops < 16e6
}

/// The most of `students` that train on one device where lavapipe computes in the thread that calls it: every
/// core has a device of its own then, as long as two students or more share what their teacher says.
pub fn share(students: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    students.div_ceil(cores.min(students / 2).max(1))
}

/// Prepares the process for Vulkan drivers, and for a command whose steps, of a [`share`] of its students,
/// have so many FLOPs, where they are known. Called by the binary when there is no other thread; whatever the user has set wins.
///
/// - Small steps keep lavapipe to one thread. The bits do not depend on it.
/// - Mesa's shader cache takes no notice of `LP_NATIVE_VECTOR_WIDTH`, lavapipe's vector width, and
///   would hand one width's code to another: a width that the user chose gets a cache of its own.
/// - Without `XDG_RUNTIME_DIR` the loader prints a line that looks like an error and is none.
pub fn prepare(step_flops: Option<f64>) {
    if step_flops.is_some_and(alone) {
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
