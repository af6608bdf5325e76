//! Which adapters there are, what they can do, and which one a run takes.

use std::borrow::Cow;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gpu::surroundings::Surroundings;

/// How a run names its adapter. The command line wins over `WGPU_BACKEND`, `WGPU_ADAPTER_NAME`
/// and `WGPU_POWER_PREF`; with nothing said, the fastest kind of adapter is taken.
#[derive(Clone, Debug, Default)]
pub struct AdapterChoice {
    /// An index into the list that `limbeck devices` prints, or a part of the adapter's name.
    pub adapter: Option<String>,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: Option<String>,
    /// A profile that `limbeck tune` wrote on this device.
    pub profile: Option<PathBuf>,
    /// Keep naga's bounds checks and loop bounds in the shaders (slow; the tests compare both).
    pub checked: bool,
}

/// What an adapter is and can do, as far as limbeck cares.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdapterReport {
    /// Its place in the list, for `--adapter`.
    pub index: usize,
    /// The marketing name.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: Cow<'static, str>,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// PCI vendor id.
    pub vendor: u32,
    /// PCI device id.
    pub device: u32,
    /// Smallest and largest subgroup (SIMD group, warp, wave) in lanes.
    pub subgroup: [u32; 2],
    /// Subgroup operations in shaders.
    pub subgroups: bool,
    /// Timestamps around passes.
    pub timestamps: bool,
    /// Half-precision arithmetic in shaders.
    pub f16: bool,
    /// The largest buffer in bytes.
    pub max_buffer: u64,
    /// The largest part of a buffer that a shader can see at once, in bytes.
    pub max_binding: u64,
    /// Workgroup memory in bytes.
    pub workgroup_memory: u32,
    /// Invocations in a workgroup.
    pub workgroup_invocations: u32,
    /// True for the adapter that a run with these options would take.
    pub chosen: bool,
}

impl AdapterReport {
    /// True for Mesa's driver on the CPU, for which some choices are made.
    pub fn is_lavapipe(&self) -> bool {
        self.name.contains("llvmpipe")
    }

    pub(super) fn new(index: usize, adapter: &wgpu::Adapter) -> Self {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        Self {
            index,
            kind: kind_name(info.device_type).into(),
            backend: info.backend.to_str().to_owned(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            name: info.name,
            vendor: info.vendor,
            device: info.device,
            subgroup: [info.subgroup_min_size, info.subgroup_max_size],
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            f16: features.contains(wgpu::Features::SHADER_F16),
            max_buffer: limits.max_buffer_size,
            max_binding: limits.max_storage_buffer_binding_size,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            chosen: false,
        }
    }

    /// One line for people: name, kind, backend, driver.
    pub fn line(&self) -> String {
        format!("{} ({}, {}, {})", self.name, self.kind, self.backend, self.driver)
    }
}

fn kind_name(kind: wgpu::DeviceType) -> &'static str {
    match kind {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    }
}

/// Lower is better. wgpu lists adapters as the loader does, where a software one may come first.
fn rank(kind: &str) -> u32 {
    let low_power = matches!(wgpu::PowerPreference::from_env(), Some(wgpu::PowerPreference::LowPower));
    match kind {
        "discrete" if low_power => 1,
        "discrete" => 0,
        "integrated" if low_power => 0,
        "integrated" => 1,
        "virtual" => 2,
        "other" => 3,
        _ => 4,
    }
}

fn backends(choice: &AdapterChoice) -> Result<wgpu::Backends> {
    let supported = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let Some(names) = choice.backend.as_ref().filter(|names| !names.is_empty()) else {
        return Ok(wgpu::Backends::from_env().unwrap_or(supported) & supported);
    };
    // A list and the short names are what WGPU_BACKEND may hold.
    let one = |name: &str| match name.trim().to_lowercase().as_str() {
        "vulkan" | "vk" => Ok(wgpu::Backends::VULKAN),
        "metal" | "mtl" => Ok(wgpu::Backends::METAL),
        "dx12" | "d3d12" => Ok(wgpu::Backends::DX12),
        _ => Err(Error::usage("--backend", "vulkan, metal or dx12", format!("`{names}`"))),
    };
    names.split(',').try_fold(wgpu::Backends::empty(), |all, name| Ok(all | one(name)?))
}

pub(super) fn enumerate(choice: &AdapterChoice) -> Result<Vec<wgpu::Adapter>> {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    desc.backends = backends(choice)?;
    let instance = wgpu::Instance::new(desc);
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    // limbeck cannot do without compute shaders (old OpenGL-class drivers lack them).
    adapters.retain(|a| a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS));
    Ok(adapters)
}

pub(super) fn choose(reports: &[AdapterReport], choice: &AdapterChoice) -> Result<usize> {
    let wanted = choice.adapter.clone().or_else(|| std::env::var("WGPU_ADAPTER_NAME").ok());
    let listing = || match reports {
        [] => "no adapter at all".to_owned(),
        some => some.iter().map(|r| format!("{}: {}", r.index, r.name)).collect::<Vec<_>>().join("; "),
    };
    let Some(wanted) = wanted.filter(|w| !w.is_empty()) else {
        return reports.iter().min_by_key(|r| rank(&r.kind)).map(|r| r.index).ok_or_else(|| {
            Error::NoAdapter {
                what: format!("the system offers none ({})", Surroundings::look()),
                hint: Surroundings::look().advice(),
            }
        });
    };
    let found = match wanted.parse::<usize>() {
        Ok(index) => reports.iter().find(|r| r.index == index),
        Err(_) => reports
            .iter()
            .filter(|r| r.name.to_lowercase().contains(&wanted.to_lowercase()))
            .min_by_key(|r| rank(&r.kind)),
    };
    found.map(|r| r.index).ok_or_else(|| Error::NoAdapter {
        what: format!("nothing matches `{wanted}`; found {}", listing()),
        hint: "`limbeck devices` lists the adapters; give --adapter an index or a part of a name".to_owned(),
    })
}

/// Every adapter in the order of their index, the one that a run would take marked as chosen.
///
/// # Errors
/// [`Error::Usage`] for an unknown backend. A choice that matches nothing marks none.
pub fn list(choice: &AdapterChoice) -> Result<Vec<AdapterReport>> {
    let adapters = enumerate(choice)?;
    let mut reports: Vec<_> = adapters.iter().enumerate().map(|(i, a)| AdapterReport::new(i, a)).collect();
    if let Ok(chosen) = choose(&reports, choice) {
        reports[chosen].chosen = true;
    }
    Ok(reports)
}
