//! What there is to find drivers with: the facts behind a missing adapter.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// What the machine has of a Vulkan loader, driver manifests and device rights.
#[derive(Clone, Debug, Serialize)]
pub struct Surroundings {
    /// The Vulkan loader library, where one was found.
    pub loader: Option<PathBuf>,
    /// Driver manifests (ICD files).
    pub drivers: Vec<PathBuf>,
    /// Render nodes and whether this user may open them.
    pub render_nodes: Vec<(PathBuf, bool)>,
}

impl Surroundings {
    /// Looks at the usual places of Linux systems; elsewhere nothing is found and nothing is needed.
    pub fn look() -> Self {
        let files = |folder: &str| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let mut paths: Vec<_> = entries.map(|e| e.path()).collect();
            paths.sort();
            paths
        };
        let loader = [
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
            "/usr/lib64",
            "/usr/lib",
            "/usr/local/lib",
        ]
        .iter()
        .map(|dir| Path::new(dir).join("libvulkan.so.1"))
        .find(|p| p.exists());
        let named = std::env::var_os("VK_DRIVER_FILES").or(std::env::var_os("VK_ICD_FILENAMES"));
        let drivers = match named {
            Some(list) => std::env::split_paths(&list).collect(),
            None => ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"].iter().flat_map(|d| files(d)).collect(),
        };
        let render_nodes = files("/dev/dri")
            .into_iter()
            .filter(|p| p.to_string_lossy().contains("renderD"))
            .map(|p| {
                let usable = std::fs::OpenOptions::new().read(true).write(true).open(&p).is_ok();
                (p, usable)
            })
            .collect();
        Self { loader, drivers, render_nodes }
    }

    pub(crate) fn advice(&self) -> String {
        if !cfg!(target_os = "linux") {
            return "update the graphics driver".to_owned();
        }
        if let Some((node, _)) = self.render_nodes.iter().find(|(_, usable)| !usable) {
            return format!(
                "{} cannot be opened: add this user to the group that owns it (often `render`)",
                node.display()
            );
        }
        let is_nvidia =
            |d: &PathBuf| d.file_name().is_some_and(|n| n.to_string_lossy().starts_with("nvidia"));
        if self.loader.is_some() && self.drivers.iter().any(|d| is_nvidia(d) && d.exists()) {
            // Seen with 580.159 in a container: it loads, and offers no vkCreateInstance.
            return "NVIDIA's driver is there and does not start; without a display it still needs GLVND: \
                    `apt-get install libegl1 libgl1 libgles2 libopengl0`"
                .to_owned();
        }
        "install a Vulkan driver; the software one runs anywhere: `apt-get install mesa-vulkan-drivers libvulkan1`"
            .to_owned()
    }
}

impl std::fmt::Display for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.loader {
            Some(path) => write!(f, "loader {}", path.display())?,
            None => write!(f, "no Vulkan loader (libvulkan.so.1)")?,
        }
        write!(f, ", {} driver manifest(s)", self.drivers.len())?;
        for missing in self.drivers.iter().filter(|d| !d.exists()) {
            write!(f, ", {} does not exist", missing.display())?;
        }
        write!(f, ", {} render node(s)", self.render_nodes.len())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_driver_of_nvidia_that_does_not_start_is_told_from_none() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let manifest = dir.path().join("nvidia_icd.json");
        let found =
            |drivers| Surroundings { loader: Some("libvulkan.so.1".into()), drivers, render_nodes: vec![] };
        assert!(found(vec![manifest.clone()]).advice().contains("mesa-vulkan-drivers"), "it is not there");
        std::fs::write(&manifest, "{}").expect("written");
        assert!(found(vec![manifest]).advice().contains("libegl1"));
    }
}
