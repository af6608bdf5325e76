//! The functions that load and store an element in another form, as WGSL.

use std::fmt::Write as _;

use naga::{
    AddressSpace, ArraySize, GlobalVariable, Module, Scalar, StorageAccess, StructMember, TypeInner,
    VectorSize,
};

use super::halves::Halves;
use crate::gpu::image;

/// An image's binding is that of its buffer and this.
pub(crate) const IMAGES: u32 = 16;

/// Declares the memory of NAME, an array in storage, a second time, as pairs of floats.
const PAIRS: &str = "@group(0) @binding(INDEX) var<storage, ACCESS> NAME_pairs: array<ELEMENT>;\n";
/// Declares it as an image.
const IMAGE: &str = "@group(0) @binding(IMAGE) var NAME_image: texture_storage_2d<rgba32float, read>;\n";

/// Stores the elements of a subgroup's lower lanes, then those of their partners. Whoever has no partner stores its own
/// twice: two stores under one condition, which lavapipe then asks for lane by lane in bytes, and not in registers again.
const BY_HALVES: &str = "\
fn NAME_twin_store_by_halves(at: u32, value: VALUE, alone: bool) {
    let others_at = select(subgroupShuffleXor(at, HALFu), at, alone);
    let others = OTHERS;
    if twin_lane < HALFu || alone {
        NAME_twin_store(at, value);
        NAME_twin_store(others_at, others);
    }
}
";

/// Stores the elements of a subgroup's lower lanes, and with each that of its partner, which lies behind it.
const OF_NEIGHBOURS: &str = "\
fn NAME_twin_store_by_halves(at: u32, value: vec4<f32>, alone: bool) {
    let both = mat2x4<f32>(value, subgroupShuffleXor(value, HALFu));
    if twin_lane < HALFu { NAME_twin_store(at / 2u, both); }
}
";

/// What loads and stores an element.
pub(super) struct Text {
    load_image: String,
    /// None where an element is no whole number of pairs of floats.
    pairs: Option<&'static Pairs>,
}

struct Pairs {
    element: &'static str,
    load: &'static str,
    store: &'static str,
    /// The type of an element as the shader has it, and that of a lane's partner, or its own where it is alone.
    value: [&'static str; 2],
}

static VEC4: Pairs = Pairs {
    element: "vec2<u64>",
    load: "\
fn NAME_twin_load(at: u32) -> vec4<f32> {
    let low = vec2<u32>(NAME_pairs[at]);
    let high = vec2<u32>(NAME_pairs[at] >> vec2<u32>(32u));
    return bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y));
}
",
    store: "\
fn NAME_twin_store(at: u32, value: vec4<f32>) {
    let x = bitcast<vec4<u32>>(value);
    NAME_pairs[at] = vec2<u64>(x.xz) | vec2<u64>(x.yw) << vec2<u32>(32u);
}
",
    value: ["vec4<f32>", "select(subgroupShuffleXor(value, HALFu), value, alone)"],
};
static MAT2X4: Pairs = Pairs {
    element: "vec4<u64>",
    load: "\
fn NAME_twin_load(at: u32) -> mat2x4<f32> {
    let low = vec4<u32>(NAME_pairs[at]);
    let high = vec4<u32>(NAME_pairs[at] >> vec4<u32>(32u));
    return mat2x4<f32>(
        bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y)),
        bitcast<vec4<f32>>(vec4<u32>(low.z, high.z, low.w, high.w)));
}
",
    store: "\
fn NAME_twin_store(at: u32, value: mat2x4<f32>) {
    let x = bitcast<vec4<u32>>(value[0]);
    let y = bitcast<vec4<u32>>(value[1]);
    let low = vec4<u64>(vec4<u32>(x.xz, y.xz));
    NAME_pairs[at] = low | vec4<u64>(vec4<u32>(x.yw, y.yw)) << vec4<u32>(32u);
}
",
    value: [
        "mat2x4<f32>",
        "mat2x4<f32>(
        select(subgroupShuffleXor(value[0], HALFu), value[0], alone),
        select(subgroupShuffleXor(value[1], HALFu), value[1], alone))",
    ],
};

impl Text {
    /// For a variable that is an array in storage, by its elements: vec4 of f32 or u32, mat2x4, or a struct of scalars
    /// that fill whole texels.
    pub(super) fn of(module: &Module, var: &GlobalVariable) -> Option<Self> {
        let (AddressSpace::Storage { .. }, TypeInner::Array { base, size: ArraySize::Dynamic, .. }) =
            (var.space, &module.types[var.ty].inner)
        else {
            return None;
        };
        let element = &module.types[*base];
        let (load_image, pairs) = match &element.inner {
            TypeInner::Vector { size: VectorSize::Quad, scalar: Scalar::F32 } => {
                (load_image("vec4<f32>", 1, "texel_0"), Some(&VEC4))
            }
            TypeInner::Vector { size: VectorSize::Quad, scalar: Scalar::U32 } => {
                (load_image("vec4<u32>", 1, "bitcast<vec4<u32>>(texel_0)"), None)
            }
            TypeInner::Matrix { columns: VectorSize::Bi, rows: VectorSize::Quad, scalar: Scalar::F32 } => {
                (load_image("mat2x4<f32>", 2, "mat2x4<f32>(texel_0, texel_1)"), Some(&MAT2X4))
            }
            TypeInner::Struct { members, .. } => {
                let name = element.name.as_ref()?;
                let (texels, value) = scalars(module, members)?;
                (load_image(name, texels, &format!("{name}({value})")), None)
            }
            _ => return None,
        };
        Some(Self { load_image, pairs })
    }

    /// Whether elements can be loaded and stored by pairs.
    pub(super) fn has_pairs(&self) -> bool {
        self.pairs.is_some()
    }

    /// The functions for `var`, and the bindings that they need: loads by an image, or by pairs; stores also by halves
    /// of a subgroup.
    pub(super) fn twin(&self, var: &GlobalVariable, image: bool, halves: Option<Halves>) -> String {
        let (Some(name), Some(binding)) = (&var.name, &var.binding) else { return String::new() };
        let written =
            matches!(var.space, AddressSpace::Storage { access } if access.contains(StorageAccess::STORE));
        let mut text = String::new();
        if let Some(mut pairs) = self.pairs.filter(|_| written || !image) {
            let mut by_halves = BY_HALVES;
            if written && std::ptr::eq(pairs, &VEC4) && halves.is_some_and(|h| h.neighbours) {
                (pairs, by_halves) = (&MAT2X4, OF_NEIGHBOURS);
            }
            text += &PAIRS.replace("ELEMENT", pairs.element);
            text += if image { "" } else { pairs.load };
            text += if written { pairs.store } else { "" };
            if let Some(halves) = halves.filter(|_| written) {
                let [value, others] = pairs.value;
                let by_halves = by_halves.replace("VALUE", value).replace("OTHERS", others);
                text += &by_halves.replace("HALF", &halves.lanes.to_string());
            }
        }
        if image {
            text += IMAGE;
            text += &self.load_image;
        }
        text.replace("NAME", name)
            .replace("INDEX", &binding.binding.to_string())
            .replace("IMAGE", &(binding.binding + IMAGES).to_string())
            .replace("ACCESS", if written { "read_write" } else { "read" })
    }
}

/// A function that loads an element of `texels` texels, which lie in one row, and makes `value` of them.
fn load_image(element: &str, texels: usize, value: &str) -> String {
    let width = image::WIDTH;
    let mut text = format!(
        "fn NAME_twin_load(at: u32) -> {element} {{
    let place = vec2<u32>({texels}u * at % {width}u, {texels}u * at / {width}u);\n"
    );
    for i in 0..texels {
        let _ = writeln!(text, "    let texel_{i} = textureLoad(NAME_image, place + vec2<u32>({i}u, 0u));");
    }
    text + &format!("    return {value};\n}}\n")
}

/// How many texels a struct of scalars of 32 bits is, a power of two, and its members out of them.
fn scalars(module: &Module, members: &[StructMember]) -> Option<(usize, String)> {
    let texels = members.len() / 4;
    if !members.len().is_multiple_of(4) || !texels.is_power_of_two() || texels > image::WIDTH {
        return None;
    }
    let mut values = Vec::new();
    for (i, member) in members.iter().enumerate() {
        let from = format!("texel_{}[{}]", i / 4, i % 4);
        values.push(match module.types[member.ty].inner {
            _ if member.offset as usize != 4 * i => return None,
            TypeInner::Scalar(Scalar::F32) => from,
            TypeInner::Scalar(Scalar::U32) => format!("bitcast<u32>({from})"),
            _ => return None,
        });
    }
    Some((texels, values.join(", ")))
}
