//! From a shader file to a pipeline: constants filled in, bindings reflected, built once.
//!
//! WGSL is the only declaration of a kernel's bindings and parameters. naga reflects it, the
//! host binds by name, and a test compares every Rust parameter struct with what naga saw.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::gpu::device::Gpu;
use crate::gpu::direct;
use crate::gpu::image;
use crate::gpu::program::Bound;
use crate::gpu::twins::{IMAGES, twinned};

/// The workgroup memory that every WebGPU device has, in bytes.
pub const BASELINE_WORKGROUP_MEMORY: u32 = 16 * 1024;
/// The invocations per workgroup that every WebGPU device has.
pub const BASELINE_INVOCATIONS: u32 = 256;

/// A value for a `const` line of a shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    /// `const NAME: u32 = …u;`
    U32(u32),
    /// `const NAME: bool = …;`
    Bool(bool),
}

impl std::fmt::Display for Constant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::U32(v) => write!(f, "{v}u"),
            Self::Bool(v) => write!(f, "{v}"),
        }
    }
}

/// Constant names with the values the host fills in.
pub type Constants = Vec<(&'static str, Constant)>;

/// A shader file together with what the host knows of it.
pub struct Kernel {
    /// The stem of the file in `shaders/`.
    pub name: &'static str,
    /// The file's text: valid WGSL as it stands.
    pub source: &'static str,
    /// Name, offset and size in bytes of each field of the Rust `Params`.
    pub params: &'static [(&'static str, usize, usize)],
    /// Every combination of constants that the host can ask for.
    pub variants: fn() -> Vec<Constants>,
}

impl Kernel {
    /// The shader with `constants` in place of the values in its `const NAME: type = value;` lines.
    ///
    /// Register tiles need lengths that are constants when the shader is parsed, which `override`
    /// values are not; so there is one way for all constants, and the file stays valid WGSL.
    ///
    /// # Panics
    /// Where the shader has not exactly one such line for a name: our own bug, met by the tests.
    pub fn specialise(&self, constants: &[(&'static str, Constant)]) -> String {
        self.specialise_text(self.source, constants)
    }

    fn specialise_text(&self, source: &str, constants: &[(&'static str, Constant)]) -> String {
        let mut text = String::with_capacity(source.len());
        let mut filled = 0;
        for line in source.lines() {
            let value = line.strip_prefix("const ").and_then(|rest| {
                let (name, rest) = rest.split_once(':')?;
                let (ty, _) = rest.split_once('=')?;
                let (_, value) = constants.iter().find(|(n, _)| *n == name)?;
                Some((name, ty, value))
            });
            match value {
                Some((name, ty, value)) => {
                    filled += 1;
                    let _ = writeln!(text, "const {name}:{ty}= {value};");
                }
                None => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        assert_eq!(filled, constants.len(), "{}: a constant has no line", self.name);
        text
    }
}

/// How a shader declares a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<uniform>`
    Uniform,
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    ReadWrite,
    /// `var<storage, read>`, and the driver gets an image ([`crate::gpu::twins`]).
    Image,
}

/// One `@binding` of a shader.
#[derive(Clone, Debug)]
pub struct Binding {
    /// The variable's name, by which the host binds.
    pub name: String,
    /// Its index in group 0.
    pub index: u32,
    /// Its address space and access.
    pub access: Access,
    /// Name, offset and size in bytes of each member, where the variable is a struct.
    pub members: Vec<(String, usize, usize)>,
    /// The size in bytes (of a runtime-sized array: of one element).
    pub size: usize,
}

/// What naga saw in a shader.
#[derive(Clone, Debug)]
pub struct Reflection {
    /// All bindings by index.
    pub bindings: Vec<Binding>,
    /// Invocations per workgroup in x, y, z.
    pub workgroup_size: [u32; 3],
    /// Workgroup memory in bytes. wgpu does not hold it to the limit, so we do.
    pub workgroup_memory: u32,
}

/// Reads a WGSL text: bindings, struct layouts, workgroup size and memory.
///
/// # Errors
/// The parser's message, with the place in the text.
pub fn reflect(source: &str) -> std::result::Result<Reflection, String> {
    Reflection::of(&parse(source)?)
}

fn parse(source: &str) -> std::result::Result<naga::Module, String> {
    naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))
}

impl Reflection {
    fn of(module: &naga::Module) -> std::result::Result<Self, String> {
        let gctx = module.to_ctx();
        let size = |ty: naga::Handle<naga::Type>| module.types[ty].inner.size(gctx) as usize;
        let mut bindings = Vec::new();
        let mut workgroup_memory = 0;
        for (_, var) in module.global_variables.iter() {
            let access = match var.space {
                naga::AddressSpace::Uniform => Access::Uniform,
                naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => {
                    Access::ReadWrite
                }
                naga::AddressSpace::Storage { .. } => Access::Read,
                naga::AddressSpace::WorkGroup => {
                    workgroup_memory += size(var.ty) as u32;
                    continue;
                }
                _ => continue,
            };
            let Some(binding) = var.binding else { continue };
            // A runtime-sized array of structs is described by its element.
            let element = match module.types[var.ty].inner {
                naga::TypeInner::Array { base, .. } => base,
                _ => var.ty,
            };
            let members = match &module.types[element].inner {
                naga::TypeInner::Struct { members, .. } => members
                    .iter()
                    .map(|m| {
                        let name = m.name.clone().unwrap_or_default();
                        (name, m.offset as usize, size(m.ty))
                    })
                    .collect(),
                _ => Vec::new(),
            };
            bindings.push(Binding {
                name: var.name.clone().unwrap_or_default(),
                index: binding.binding,
                access,
                members,
                size: size(element),
            });
        }
        bindings.sort_by_key(|b| b.index);
        let entry = module.entry_points.first().ok_or("the shader has no entry point")?;
        Ok(Self { bindings, workgroup_size: entry.workgroup_size, workgroup_memory })
    }
}

/// A kernel with its constants, ready to be dispatched.
pub(crate) struct Pipeline {
    built: Built,
    pub(crate) reflection: Reflection,
}

enum Built {
    /// By wgpu.
    Tracked(wgpu::ComputePipeline, wgpu::BindGroupLayout),
    /// Past it.
    Direct(Arc<direct::Pipeline>),
}

impl Pipeline {
    /// Binds buffers and images, in the order of the reflected bindings.
    ///
    /// # Errors
    /// [`Error::Device`] where the device refuses.
    pub(crate) fn bind(&self, gpu: &Gpu, label: &str, entries: &[wgpu::BindGroupEntry<'_>]) -> Result<Bound> {
        let op = format!("bind `{label}`");
        match &self.built {
            Built::Direct(pipeline) => pipeline.bind(gpu, &op, entries).map(Bound::Direct),
            Built::Tracked(pipeline, layout) => gpu.guarded(&op, || {
                let desc = wgpu::BindGroupDescriptor { label: Some(label), layout, entries };
                Bound::Tracked(pipeline.clone(), gpu.device.create_bind_group(&desc))
            }),
        }
    }
}

type Key = (&'static str, Constants);

/// Pipelines by kernel and constants, and the texts that [`Gpu::plant`] put in place of a kernel's own.
#[derive(Default)]
pub(crate) struct PipelineCache {
    built: Mutex<HashMap<Key, Arc<Pipeline>>>,
    planted: Mutex<HashMap<&'static str, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// The pipeline for a kernel with constants, from the cache or built now.
    pub(crate) fn pipeline(&self, kernel: &Kernel, constants: &Constants) -> Result<Arc<Pipeline>> {
        let key = (kernel.name, constants.clone());
        let mut cache = lock(&self.pipelines.built);
        if let Some(found) = cache.get(&key) {
            return Ok(found.clone());
        }
        let built = Arc::new(self.build(kernel, constants)?);
        cache.insert(key, built.clone());
        Ok(built)
    }

    /// Builds `kernel` on this device from an edited text from now on: the fault-injection point by
    /// which the tests ask whether a wrong kernel is caught. An edited text is no longer trusted, so
    /// it gets the run-time checks whatever the device was opened with.
    pub fn plant(&self, kernel: &Kernel, edit: impl FnOnce(&str) -> String) {
        lock(&self.pipelines.planted).insert(kernel.name, edit(kernel.source));
        lock(&self.pipelines.built).retain(|(name, ..), _| *name != kernel.name);
    }

    fn build(&self, kernel: &Kernel, constants: &Constants) -> Result<Pipeline> {
        let op = format!("build kernel `{}` {constants:?}", kernel.name);
        let planted = lock(&self.pipelines.planted).get(kernel.name).cloned();
        let checked = self.checked || planted.is_some();
        let source = kernel.specialise_text(planted.as_deref().unwrap_or(kernel.source), constants);
        let mut module = parse(&source).map_err(|e| Error::device(&op, e))?;
        let mut reflection = Reflection::of(&module).map_err(|e| Error::device(&op, e))?;
        let invocations: u32 = reflection.workgroup_size.iter().product();
        for (what, wanted, limit) in [
            (
                "bytes of workgroup memory",
                reflection.workgroup_memory,
                self.limits.max_compute_workgroup_storage_size,
            ),
            ("invocations per workgroup", invocations, self.limits.max_compute_invocations_per_workgroup),
        ] {
            if wanted > limit {
                return Err(Error::device(op, format!("wanted {wanted} {what}, the device has {limit}")));
            }
        }
        if self.takes_twins() {
            let [_, lanes] = self.report.subgroup;
            // An image ends behind its tensor, so checks would not hold a kernel to it.
            let (twins, images) = twinned(&source, lanes, !checked).map_err(|e| Error::device(&op, e))?;
            let as_image =
                |b: &Binding| Binding { index: b.index + IMAGES, access: Access::Image, ..b.clone() };
            let images: Vec<_> =
                reflection.bindings.iter().filter(|b| images.contains(&b.name)).map(as_image).collect();
            reflection.bindings.extend(images);
            module = twins;
        }
        let entries: Vec<_> = reflection.bindings.iter().map(layout_entry).collect();
        // Unchecked shaders may touch memory outside their bindings or loop for ever. Ours are fixed text: each guards
        // its own edges, every loop is bounded by a size in its parameters, its `record` takes those sizes from the
        // bound tensors' own shapes, and the tests run every kernel checked and unchecked with guard zones around its
        // outputs.
        let built = match self.is_direct() {
            true => {
                let built = direct::Pipeline::new(self, &op, kernel.name, module, checked, &entries)?;
                Built::Direct(Arc::new(built))
            }
            false => self.build_tracked(&op, kernel.name, module, checked, &entries)?,
        };
        Ok(Pipeline { built, reflection })
    }

    fn build_tracked(
        &self,
        op: &str,
        name: &str,
        module: naga::Module,
        checked: bool,
        entries: &[wgpu::BindGroupLayoutEntry],
    ) -> Result<Built> {
        let label = Some(name);
        self.guarded(op, || {
            let source = wgpu::ShaderSource::Naga(Cow::Owned(module));
            let desc = wgpu::ShaderModuleDescriptor { label, source };
            let module = if checked {
                self.device.create_shader_module(desc)
            } else {
                // SAFETY: see [`Gpu::build`].
                #[allow(unsafe_code, reason = "trusted shaders are the point of this line")]
                unsafe {
                    self.device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked())
                }
            };
            let layout =
                self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries });
            let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label,
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label,
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &[],
                    zero_initialize_workgroup_memory: checked,
                },
                cache: None,
            });
            Built::Tracked(pipeline, layout)
        })
    }
}

/// The name of the one uniform that changes from step to step inside a submission: its offset is
/// dynamic, so that a plan recorded once runs many steps in one submission.
pub(crate) const SLOT: &str = "slot";

fn layout_entry(binding: &Binding) -> wgpu::BindGroupLayoutEntry {
    let buffer = |ty| wgpu::BindingType::Buffer {
        ty,
        has_dynamic_offset: binding.name == SLOT,
        min_binding_size: None,
    };
    let ty = match binding.access {
        Access::Uniform => buffer(wgpu::BufferBindingType::Uniform),
        Access::Read => buffer(wgpu::BufferBindingType::Storage { read_only: true }),
        Access::ReadWrite => buffer(wgpu::BufferBindingType::Storage { read_only: false }),
        Access::Image => wgpu::BindingType::StorageTexture {
            access: wgpu::StorageTextureAccess::ReadOnly,
            format: image::FORMAT,
            view_dimension: wgpu::TextureViewDimension::D2,
        },
    };
    wgpu::BindGroupLayoutEntry {
        binding: binding.index,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty,
        count: None,
    }
}
