//! Every kernel, with every combination of constants, in the languages of the devices that we
//! cannot run: SPIR-V for Vulkan, MSL for Metal, HLSL for DX12. No GPU is needed.
//!
//! naga writes all three as wgpu would ask it to; where there is an independent judge of the
//! result, it has a say: `spirv-val` for SPIR-V, glslang's HLSL front end for HLSL, Tint for the
//! WGSL itself. The first two must be there in the CI (`CI=true`); elsewhere a missing judge is
//! named and passed over. MSL has no judge outside of macOS. Each judge has to refuse something
//! that is planted, too.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{EXPECTED, Variant, count, variants};
use limbeck::gpu::{Constant, twins};
use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

/// With naga's run-time checks, as the tests run the kernels, and without, as users do.
const CHECKED: [bool; 2] = [false, true];

/// Vulkan versions with the SPIR-V that wgpu writes for them: the oldest (without subgroups), the
/// oldest with them, and the one from which on nothing changes. Storage buffers and interfaces are
/// declared in three ways over these.
const VULKAN: [(&str, (u8, u8)); 3] = [("vulkan1.0", (1, 0)), ("vulkan1.1", (1, 3)), ("vulkan1.3", (1, 6))];

struct Parsed {
    variant: Variant,
    module: naga::Module,
    info: ModuleInfo,
}

/// What a kernel may ask of a device: nothing that not every device has, unless it says so by name.
fn claimed(variant: &Variant) -> Capabilities {
    let mut claimed = Capabilities::empty();
    claimed.set(Capabilities::SUBGROUP, variant.uses("subgroup"));
    claimed.set(Capabilities::SUBGROUP_BARRIER, variant.uses("subgroupBarrier"));
    claimed.set(Capabilities::SHADER_FLOAT16, variant.uses("f16"));
    claimed
}

impl Parsed {
    fn new(variant: Variant) -> Self {
        let refuse = |words: String| -> ! { panic!("{}: {words}", variant.name()) };
        let module = naga::front::wgsl::parse_str(&variant.source)
            .unwrap_or_else(|e| refuse(e.emit_to_string(&variant.source)));
        let info = Validator::new(ValidationFlags::all(), claimed(&variant))
            .validate(&module)
            .unwrap_or_else(|e| refuse(e.emit_to_string(&variant.source)));
        Self { variant, module, info }
    }
}

fn parsed() -> Vec<Parsed> {
    variants().into_iter().map(Parsed::new).collect()
}

/// As lavapipe gets them with subgroups of `lanes`: with storage read as images or by pairs of floats, and written
/// by pairs. A kernel for subgroups of another width it never gets.
fn twinned(lanes: u32, by_images: bool) -> Vec<Parsed> {
    let parse = |variant: Variant| {
        let refuse = |words: String| -> ! { panic!("{} with twins: {words}", variant.name()) };
        let (module, _) = twins::twinned(&variant.source, lanes, by_images).unwrap_or_else(|e| refuse(e));
        let needed = Capabilities::SHADER_INT64 | Capabilities::SUBGROUP;
        let info = Validator::new(ValidationFlags::all(), claimed(&variant) | needed)
            .validate(&module)
            .unwrap_or_else(|e| refuse(e.to_string()));
        Parsed { variant, module, info }
    };
    let of_lanes = |variant: &Variant| {
        !variant.uses("subgroup") || variant.constants.contains(&("LANES", Constant::U32(lanes)))
    };
    let twinned: Vec<_> = variants().into_iter().filter(of_lanes).map(parse).collect();
    assert!(twinned.iter().any(|p| p.variant.uses("subgroup")), "no kernel for subgroups of {lanes}");
    twinned
}

#[test]
fn every_shader_file_is_in_the_list_of_kernels() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .expect("shaders/ is there")
        .map(|entry| entry.expect("an entry of shaders/").path())
        .filter(|path| path.extension().is_some_and(|e| e == "wgsl"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    files.sort();
    let mut listed: Vec<_> = limbeck::kernels::all().iter().map(|k| k.name).collect();
    listed.sort_unstable();
    assert_eq!(files, listed);
}

#[test]
fn no_kernel_and_no_variant_is_missing() {
    assert_eq!(count(&variants()), EXPECTED, "if the change is meant, say so in EXPECTED");
}

#[test]
fn no_variant_is_another_one_again() {
    let mut sources: Vec<_> = variants().into_iter().map(|v| v.source).collect();
    let all = sources.len();
    sources.sort();
    sources.dedup();
    assert_eq!(sources.len(), all, "constants that change nothing");
}

#[test]
fn a_kernel_claims_no_more_than_it_needs() {
    for Parsed { variant, module, .. } in parsed() {
        for capability in claimed(&variant) {
            let less = claimed(&variant) - capability;
            let refused = Validator::new(ValidationFlags::all(), less).validate(&module).is_err();
            assert!(refused, "{} is valid without {capability:?}", variant.name());
        }
    }
}

#[test]
fn spirv_is_valid() {
    let files = tempfile::tempdir().expect("a temporary folder");
    let job = |i: usize, name: String, target: &str, words: &[u32]| {
        let file = files.path().join(format!("{i}.spv"));
        std::fs::write(&file, bytemuck::cast_slice(words)).expect("a temporary file");
        let mut command = Command::new("spirv-val");
        command.args(["--target-env", target]).arg(&file);
        (format!("{name} for {target}"), command)
    };
    let mut jobs = Vec::new();
    let mut planted = Vec::new();
    let whole = parsed().into_iter().map(|p| (p, "", &VULKAN[..]));
    let ways = [(8, true, ", loads from images"), (8, false, ", by pairs"), (16, true, ", stores by halves")];
    let twins = ways.into_iter().flat_map(|(lanes, by_images, how)| {
        twinned(lanes, by_images).into_iter().map(move |p| (p, how, &VULKAN[2..]))
    });
    for (Parsed { variant, module, info }, how, targets) in whole.chain(twins) {
        for checked in CHECKED {
            for (target, lang_version) in targets.iter().copied() {
                if variant.uses("subgroup") && target == "vulkan1.0" {
                    continue;
                }
                let name = format!("{}{how}, checked: {checked}", variant.name());
                let words = spv::write_vec(&module, &info, &spv_options(lang_version, checked), None)
                    .unwrap_or_else(|e| panic!("{name}: {e}"));
                jobs.push(job(jobs.len(), name, target, &words));
                planted = words;
            }
        }
    }
    if found("spirv-val", "spirv-tools", Need::InCi) {
        assert_eq!(refusals(jobs), Vec::<String>::new());
        planted.pop(); // the end of the last function
        let planted = job(usize::MAX, "planted".to_owned(), "vulkan1.3", &planted);
        assert_eq!(refusals(vec![planted]).len(), 1, "spirv-val took a module without its end");
    }
}

fn spv_options(lang_version: (u8, u8), checked: bool) -> spv::Options<'static> {
    spv::Options {
        lang_version,
        // What wgpu sets on every device, and no debug information.
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        bounds_check_policies: policies(checked),
        zero_initialize_workgroup_memory: match checked {
            true => spv::ZeroInitializeWorkgroupMemoryMode::Polyfill,
            false => spv::ZeroInitializeWorkgroupMemoryMode::None,
        },
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        fake_missing_bindings: true,
        ..Default::default()
    }
}

fn policies(checked: bool) -> BoundsCheckPolicies {
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    BoundsCheckPolicies {
        index: policy,
        buffer: policy,
        image_load: policy,
        binding_array: BoundsCheckPolicy::Unchecked,
    }
}

#[test]
fn msl_can_be_written() {
    let pipeline = msl::PipelineOptions::default();
    for Parsed { variant, module, info } in &parsed() {
        for checked in CHECKED {
            let name = variant.name();
            // The slots that wgpu gives out: buffers in the order of the bindings, then the sizes of
            // the runtime-sized arrays. With them naga need not fake anything.
            let mut resources = msl::EntryPointResources::default();
            for (_, variable) in module.global_variables.iter() {
                if let Some(binding) = variable.binding {
                    let slot = binding.binding as u8;
                    let target = msl::BindTarget { buffer: Some(slot), mutable: true, ..Default::default() };
                    resources.resources.insert(binding, target);
                }
            }
            resources.sizes_buffer = Some(resources.resources.len() as u8);
            let options = msl::Options {
                lang_version: (2, 4),
                per_entry_point_map: [("main".to_owned(), resources)].into(),
                fake_missing_bindings: false,
                bounds_check_policies: policies(checked),
                zero_initialize_workgroup_memory: checked,
                force_loop_bounding: checked,
                emit_int_div_checks: checked,
                ..Default::default()
            };
            let (text, written) = msl::write_string(module, info, &options, &pipeline)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            for entry in written.entry_point_names {
                let entry = entry.unwrap_or_else(|e| panic!("{name}: {e}"));
                assert!(text.contains(&format!("kernel void {entry}(")), "{name}: no {entry}");
            }
        }
    }
}

#[test]
fn hlsl_is_valid() {
    let files = tempfile::tempdir().expect("a temporary folder");
    let mut jobs = Vec::new();
    for Parsed { variant, module, info } in &parsed() {
        for checked in CHECKED {
            let text = hlsl_of(variant, module, info, checked);
            let file = files.path().join(format!("{}.hlsl", jobs.len()));
            jobs.push((
                format!("{}, checked: {checked}", variant.name()),
                glslang(&file, &for_glslang(&text)),
            ));
        }
    }
    if found("glslangValidator", "glslang-tools", Need::InCi) {
        assert_eq!(refusals(jobs), Vec::<String>::new());
    }
}

fn hlsl_of(variant: &Variant, module: &naga::Module, info: &ModuleInfo, checked: bool) -> String {
    let options = hlsl::Options {
        // What FXC takes where DXC is missing; subgroups and half precision begin with DXC.
        shader_model: match claimed(variant).is_empty() {
            true => hlsl::ShaderModel::V5_1,
            false => hlsl::ShaderModel::V6_2,
        },
        zero_initialize_workgroup_memory: checked,
        restrict_indexing: checked,
        force_loop_bounding: checked,
        ..Default::default()
    };
    let mut text = String::new();
    hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default())
        .write(module, info, None)
        .unwrap_or_else(|e| panic!("{}: {e}", variant.name()));
    text
}

fn glslang(file: &Path, text: &str) -> Command {
    std::fs::write(file, text).expect("a temporary file");
    let mut command = Command::new("glslangValidator");
    // Down to SPIR-V, unoptimised: it is the reading that counts.
    command.args(["-D", "-V", "-Od", "--target-env", "vulkan1.1", "-e", "main", "-S", "comp"]);
    command.args(["-o", "/dev/null"]).arg(file);
    command
}

/// The one thing in naga's HLSL that FXC and DXC take and glslang does not: an array that is zeroed
/// by a cast, `(float4[8])0`. Local arrays, `array<..>()` and the zeroing of workgroup memory are
/// written so. Here they stay unset, which only the compiler of a real device could tell apart;
/// everything around them is judged. `glslang_still_needs_its_exception` keeps this true.
fn for_glslang(hlsl: &str) -> String {
    let mut out = String::new();
    let mut returned = "";
    for line in hlsl.lines() {
        let kept = match line.split_once("(") {
            Some((before, _)) if line.ends_with("])0;") => match before.trim() {
                "return" => format!("{returned} zero; return zero;"),
                _ => format!("{};", before.trim_end().trim_end_matches('=')),
            },
            _ => line.to_owned(),
        };
        returned = line.split(' ').next().unwrap_or_default();
        out += &kept;
        out.push('\n');
    }
    out
}

#[test]
fn glslang_still_needs_its_exception() {
    if !found("glslangValidator", "glslang-tools", Need::InCi) {
        return;
    }
    let variant = Variant {
        kernel: "planted",
        constants: vec![],
        source: "@compute @workgroup_size(1) fn main() { var a: array<f32, 3>; a[1] = 1.0; }".to_owned(),
    };
    let Parsed { variant, module, info } = Parsed::new(variant);
    let text = hlsl_of(&variant, &module, &info, false);
    let files = tempfile::tempdir().expect("a temporary folder");
    let judge =
        |text: &str| refusals(vec![("planted".to_owned(), glslang(&files.path().join("x.hlsl"), text))]);
    assert_eq!(judge(&text).len(), 1, "glslang takes `(float[3])0` by now: drop `for_glslang`");
    assert_eq!(judge(&for_glslang(&text)), Vec::<String>::new());
}

/// Tint is the compiler in Chromium: a second reading of the same texts, and the one that knows
/// which control flow is uniform. `make test-chromium` asks it in any case.
#[test]
fn tint_agrees() {
    if !found("tint", "Dawn's tint", Need::Never) {
        return;
    }
    let files = tempfile::tempdir().expect("a temporary folder");
    let job = |i: usize, name: String, text: &str| {
        let file = files.path().join(format!("{i}.wgsl"));
        std::fs::write(&file, text).expect("a temporary file");
        let mut command = Command::new("tint");
        command.args(["--format", "wgsl", "--output-name", "/dev/null"]).arg(&file);
        (name, command)
    };
    let jobs = variants().iter().enumerate().map(|(i, v)| job(i, v.name(), &v.for_browsers())).collect();
    assert_eq!(refusals(jobs), Vec::<String>::new());
    let planted = job(usize::MAX, "planted".to_owned(), common::NON_UNIFORM_BARRIER);
    assert_eq!(refusals(vec![planted]).len(), 1, "tint took a barrier in non-uniform control flow");
}

#[derive(PartialEq)]
enum Need {
    InCi,
    Never,
}

/// Whether a program is there; where it is not, that is said, and is a failure where it is needed.
fn found(program: &str, package: &str, need: Need) -> bool {
    let there = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()));
    if !there {
        assert!(
            need == Need::Never || std::env::var_os("CI").is_none(),
            "{program} is missing; install {package}"
        );
        println!("not judged: {program} ({package}) is not installed");
    }
    there
}

/// Runs the commands, as many at a time as there are cores; the name and words of those that fail.
fn refusals(jobs: Vec<(String, Command)>) -> Vec<String> {
    let count = jobs.len();
    let (jobs, refused, done) = (Mutex::new(jobs.into_iter()), Mutex::new(Vec::new()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some((name, mut command)) = jobs.lock().expect("no panic before").next() else {
                        break;
                    };
                    let output = command.stdin(Stdio::null()).output().expect("the program starts");
                    done.fetch_add(1, Ordering::Relaxed);
                    if !output.status.success() {
                        let words = [output.stdout, output.stderr].concat();
                        let words = String::from_utf8_lossy(&words).trim().to_owned();
                        refused.lock().expect("no panic before").push(format!("{name}: {words}"));
                    }
                }
            });
        }
    });
    assert_eq!(done.into_inner(), count);
    assert!(count > 0, "nothing was judged");
    let mut refused = refused.into_inner().expect("no panic before");
    refused.sort();
    refused
}
