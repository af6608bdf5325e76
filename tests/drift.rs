//! What must agree in two places, held together without a GPU: shaders and their Rust twins, and the
//! layers of the source tree.

#[allow(dead_code, reason = "other tests use the rest")]
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use limbeck::gpu::pipeline::{
    Access, BASELINE_INVOCATIONS, BASELINE_WORKGROUP_MEMORY, Binding, Constants, Reflection, reflect,
};
use limbeck::gpu::twins::twinned;
use limbeck::gpu::{Constant, Kernel};
use limbeck::kernels;
use limbeck::kernels::step::Step;

/// Storage buffers per stage that WebGPU's default limits grant.
const BASELINE_STORAGE_BUFFERS: usize = 8;

type Fields = &'static [(&'static str, usize, usize)];

/// Every kernel with every combination of constants: name, constants, reflection.
fn all() -> Vec<(&'static Kernel, Constants, Reflection)> {
    let variants =
        |kernel: &'static Kernel| (kernel.variants)().into_iter().map(move |constants| (kernel, constants));
    kernels::all()
        .into_iter()
        .flat_map(variants)
        .map(|(kernel, constants)| {
            let text = kernel.specialise(&constants);
            let reflection = reflect(&text).unwrap_or_else(|e| panic!("{} {constants:?}: {e}", kernel.name));
            (kernel, constants, reflection)
        })
        .collect()
}

fn named<'a>(reflection: &'a Reflection, name: &str) -> Option<&'a Binding> {
    reflection.bindings.iter().find(|b| b.name == name)
}

fn assert_same(members: &[(String, usize, usize)], fields: Fields, what: &str) {
    let fields: Vec<_> = fields.iter().map(|(n, o, s)| ((*n).to_owned(), *o, *s)).collect();
    assert_eq!(members, fields, "{what}: name, offset and size of each field, WGSL against Rust");
}

#[test]
fn every_kernel_was_seen() {
    let all = all();
    let names: BTreeSet<&str> = all.iter().map(|(k, ..)| k.name).collect();
    let files: BTreeSet<String> = shaders().into_iter().map(|(stem, _)| stem).collect();
    let listed: BTreeSet<String> = names.iter().map(|n| (*n).to_owned()).collect();
    assert_eq!(listed, files, "kernels in the list, shaders in the folder");
    let counts: Vec<(&str, usize)> = kernels::all().iter().map(|k| (k.name, (k.variants)().len())).collect();
    assert_eq!(counts, common::EXPECTED, "kernels and their number of variants");
    let distinct: BTreeSet<String> = all.iter().map(|(k, c, _)| format!("{} {c:?}", k.name)).collect();
    assert_eq!(distinct.len(), all.len(), "a variant is listed twice");
}

fn shaders() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut all: Vec<(String, String)> = fs::read_dir(folder)
        .expect("shaders/")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "wgsl"))
        .map(|path| {
            let stem = path.file_stem().expect("a stem").to_string_lossy().into_owned();
            (stem, fs::read_to_string(&path).expect("a shader"))
        })
        .collect();
    all.sort();
    all
}

#[test]
fn parameters_have_the_same_names_offsets_and_sizes() {
    for (kernel, _, reflection) in all() {
        let params = named(&reflection, "params").unwrap_or_else(|| panic!("{}: no params", kernel.name));
        assert_eq!(params.access, Access::Uniform, "{}", kernel.name);
        assert_same(&params.members, kernel.params, kernel.name);
        // The uniform is bound in steps of 16 bytes; a struct that needs more would read past its end.
        let end = kernel.params.iter().map(|(_, offset, size)| offset + size).max().expect("fields");
        assert!(params.size <= end.next_multiple_of(16), "{}: {} > {end}", kernel.name, params.size);
    }
}

#[test]
fn the_step_is_the_same_struct_everywhere() {
    let mut seen = BTreeSet::new();
    for (kernel, _, reflection) in all() {
        let (steps, slot) = (named(&reflection, "steps"), named(&reflection, "slot"));
        if let Some(slot) = slot {
            assert_eq!((slot.access, slot.size), (Access::Uniform, 16), "{}", kernel.name);
        }
        let Some(steps) = steps else { continue };
        assert!(slot.is_some(), "{}: which of the steps?", kernel.name);
        assert_same(&steps.members, Step::FIELDS, kernel.name);
        assert_eq!((steps.access, steps.size), (Access::Read, size_of::<Step>()), "{}", kernel.name);
        if seen.insert(kernel.name) {
            let (_, images) = twinned(kernel.source, 8, true).expect("the shader parses");
            assert!(
                images.iter().any(|name| name == "steps"),
                "{}: takes a part of a step: {images:?}",
                kernel.name
            );
        }
    }
    assert_eq!(
        seen.into_iter().collect::<Vec<_>>(),
        ["adam", "dropout", "ensemble", "feature_hint", "feature_similarity", "gather", "head", "sgd"]
    );
}

/// An array whose elements are not named by constants is no register, whatever the compiler.
#[test]
fn register_tiles_are_named_by_constants() {
    use naga::Expression;
    // What the epilogue does to a vec4 is no matter here.
    let has_end = |constant: &(&str, Constant)| {
        let (name, value) = *constant;
        ["BIAS", "KEEP", "ACCUMULATE", "ACTIVATION", "MASK"].contains(&name)
            && ![Constant::Bool(false), Constant::U32(0)].contains(&value)
    };
    let subgroup = kernels::all().into_iter().find(|k| k.name == "matmul_subgroup").expect("the kernel");
    let variants: Vec<_> = (subgroup.variants)().into_iter().filter(|v| !v.iter().any(has_end)).collect();
    assert!(variants.len() > 40, "{} variants", variants.len());
    for constants in variants {
        let (module, _) = twinned(&subgroup.specialise(&constants), 8, true).expect("the shader parses");
        let main = &module.entry_points[0].function;
        assert!(main.local_variables.iter().any(|(_, v)| v.name.as_deref() == Some("sums")));
        let is_local = |mut at| loop {
            match main.expressions[at] {
                Expression::LocalVariable(_) => break true,
                Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => at = base,
                _ => break false,
            }
        };
        let by_a_value = |e: &Expression| matches!(*e, Expression::Access { base, .. } if is_local(base));
        assert!(!main.expressions.iter().any(|(_, e)| by_a_value(e)), "{constants:?}");
    }
}

#[test]
fn bindings_are_named_numbered_and_few() {
    for (kernel, constants, reflection) in all() {
        let what = format!("{} {constants:?}", kernel.name);
        let indices: Vec<u32> = reflection.bindings.iter().map(|b| b.index).collect();
        assert_eq!(indices, (0..indices.len() as u32).collect::<Vec<_>>(), "{what}: numbers without gaps");
        let names: BTreeSet<&str> = reflection.bindings.iter().map(|b| b.name.as_str()).collect();
        assert_eq!(names.len(), indices.len(), "{what}: a name twice");
        assert!(!names.contains(""), "{what}: a binding without a name");
        let storage = reflection.bindings.iter().filter(|b| b.access != Access::Uniform).count();
        assert!(storage <= BASELINE_STORAGE_BUFFERS, "{what}: {storage} storage buffers");
        let uniforms = reflection.bindings.iter().filter(|b| b.access == Access::Uniform);
        assert!(uniforms.clone().all(|b| ["params", "slot"].contains(&b.name.as_str())), "{what}");
        assert!(reflection.bindings.iter().any(|b| b.access == Access::ReadWrite), "{what}: writes nothing");
    }
}

#[test]
fn workgroups_fit_the_baseline_limits() {
    for (kernel, constants, reflection) in all() {
        let what = format!("{} {constants:?}", kernel.name);
        let [x, y, z] = reflection.workgroup_size;
        assert!((1..=BASELINE_INVOCATIONS).contains(&(x * y * z)), "{what}: {x} x {y} x {z} invocations");
        assert!(x <= 256 && y <= 256 && z <= 64, "{what}");
        let memory = reflection.workgroup_memory;
        assert!(memory <= BASELINE_WORKGROUP_MEMORY, "{what}: {memory} bytes of workgroup memory");
    }
}

/// The text between the marks of a block, from each shader that has them.
fn marked(block: &str) -> Vec<(String, String)> {
    let marks = (format!("// --- {block}"), format!("// --- end of {block}"));
    let between = |(stem, text): (String, String)| {
        let (_, rest) = text.split_once(&marks.0)?;
        let (body, _) = rest.split_once(&marks.1).unwrap_or_else(|| panic!("{stem}: no end mark"));
        Some((stem, body.to_owned()))
    };
    shaders().into_iter().filter_map(between).collect()
}

#[test]
fn there_is_one_generator() {
    let texts = marked("philox");
    let stems: Vec<&str> = texts.iter().map(|(stem, _)| stem.as_str()).collect();
    let with_one: Vec<String> = shaders()
        .into_iter()
        .filter(|(_, text)| text.contains("0xD2511F53u"))
        .map(|(stem, _)| stem)
        .collect();
    assert_eq!(stems, with_one, "every generator has the marks");
    assert_eq!(stems, ["dropout", "gather"]);
    assert_eq!(texts[0].1, texts[1].1);
}

#[test]
fn the_vec4_members_have_one_epilogue() {
    let texts = marked("epilogue");
    assert!(!texts.is_empty(), "no shader has an epilogue");
    let vec4: Vec<String> = shaders()
        .into_iter()
        .filter(|(stem, text)| {
            stem.starts_with("matmul") && text.contains("var<storage, read> saved: array<vec4<f32>>")
        })
        .map(|(stem, _)| stem)
        .collect();
    let marked: Vec<String> = texts.iter().map(|(stem, _)| stem.clone()).collect();
    assert_eq!(marked, vec4, "every vec4 member has the marks, and no other shader");
    for (stem, body) in &texts {
        assert_eq!(body, &texts[0].1, "{stem} differs from {}", texts[0].0);
    }
}

#[test]
fn a_constant_without_a_line_is_met() {
    let kernel = kernels::all()[0];
    let met = std::panic::catch_unwind(|| kernel.specialise(&[("NO_SUCH_CONSTANT", Constant::U32(1))]));
    assert!(met.is_err());
    let (_, _, reflection) = &all()[0];
    assert!(named(reflection, "params").is_some_and(|p| !p.members.is_empty()), "reflection sees structs");
}

/// The rooms from the ground up: a file imports from its own layer or a lower one.
const LAYERS: &[&[&str]] = &[
    &["error", "rng", "reference", "data"],
    &["gpu"],
    &["kernels"],
    &["mlp"],
    &["distill", "report"],
    &["train"],
    &["verify"],
    &["bench"],
    &["cli"],
];

/// Rooms that import from nowhere, though others of their layer may: independence is their point.
const ALONE: &[&str] = &["error", "rng", "reference"];

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|l| l.contains(&room))
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src/") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// The rooms that a line imports from: `use crate::room::…`, `pub use crate::room`, `crate::room::f()`
/// in the middle of a line, `use crate::{a, b::c}`.
fn rooms_of(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let after = code.split("crate::").skip(1);
    after
        .flat_map(|rest| match rest.strip_prefix('{') {
            Some(list) => list.split(',').map(word).collect(),
            None => vec![word(rest)],
        })
        .filter(|room| layer(room).is_some())
        .collect()
}

#[test]
fn imports_go_only_downwards() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut imports = 0;
    let mut wrong = Vec::new();
    for file in &files {
        let relative = file.strip_prefix(&root).expect("in src/");
        let first = relative.iter().next().expect("a name").to_string_lossy();
        let room = first.trim_end_matches(".rs").to_owned();
        if ["lib", "main"].contains(&room.as_str()) {
            continue;
        }
        let Some(own) = layer(&room) else {
            panic!("src/{first}: a room without a layer");
        };
        let text = fs::read_to_string(file).expect("a source");
        for (number, line) in text.lines().enumerate() {
            for other in rooms_of(line).into_iter().filter(|other| *other != room) {
                imports += 1;
                let at = layer(&other).expect("known");
                // `error` is what everything may return; side by side, a room may lean on data.
                let sideways = at == own && !["error", "rng", "data"].contains(&other.as_str());
                if at > own || sideways || ALONE.contains(&room.as_str()) {
                    wrong.push(format!("{}:{}: {room} imports {other}", relative.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(files.len() > 40 && imports > 60, "{} files, {imports} imports: too few", files.len());
}

#[test]
fn the_import_reader_reads_what_rust_writes() {
    assert_eq!(rooms_of("use crate::gpu::{Plan, Tensor};"), ["gpu"]);
    assert_eq!(rooms_of("pub use crate::{error, data::Split};"), ["error", "data"]);
    assert_eq!(rooms_of("    let x = crate::kernels::all(); // crate::cli::run"), ["kernels"]);
    assert!(rooms_of("use std::fmt; // crate::gpu").is_empty());
}
