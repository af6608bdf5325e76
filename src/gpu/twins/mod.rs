//! Storage in other forms, for drivers that make one load a loop over the lanes of a subgroup.
//!
//! lavapipe reads and writes each component of a vec4 in such a loop. An image over the same memory (`image`) gives a
//! texel to each lane without one, so whatever is loaded is loaded as texels. Stores, which an image would make no
//! cheaper, go by pairs: seen as `vec2<u64>` the same 16 bytes take two components instead of four, and a
//! `mat2x4<f32>`, which has a loop for each column, one of four. The bits are the same. This is done to what the driver
//! gets, for every kernel in one place; the shaders say vec4 and mat2x4 and know nothing of it.
//!
//! A struct of scalars, as the step's numbers, is as many such loops as it has members; as texels it is none.
//!
//! An invocation that stores and then loads would need to see by way of the image what it wrote by way of the buffer:
//! what is used so goes by pairs both ways. A loop that loads puts the lanes together in a register. Where a u64 of each
//! lane does not fit one, it does so in memory, at several times the cost: there it stays as it is, and what is stored is
//! stored by one half of the lanes for both (`halves`).
//!
//! Uniform values are read before anything else (`read_once`), and where there are images, loops of a constant number of
//! rounds are written out (`unroll`), for the sake of the same drivers.

mod halves;
mod redirect;
mod text;
mod unroll;
mod uses;

use naga::{AddressSpace, Block, Expression, GlobalVariable, Module, Range, Span, Statement};

use halves::Halves;
pub(crate) use text::IMAGES;
use text::Text;
use uses::{Uses, taken_whole};

/// The lanes of 64 bits in the widest register that a CPU has, of 512 bits.
const LANES_OF_PAIRS: u32 = 8;

/// Parses a shader so that its `array<vec4<f32>>` and `array<mat2x4<f32>>` in storage are read as images and written by
/// pairs of floats, and its arrays of `vec4<u32>` and of structs of scalars are read as images, wherever an element is
/// only ever taken whole and that pays for subgroups of `lanes` lanes. The device must have `SHADER_INT64`. Gives the
/// names of those that are images as well, at bindings of their own; none but `by_images`, without which loads go by
/// pairs where there are any.
///
/// # Errors
/// The parser's message, with the place in the text.
pub fn twinned(source: &str, lanes: u32, by_images: bool) -> Result<(Module, Vec<String>), String> {
    let parse = |text: &str| naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text));
    let module = parse(source)?;
    // In front of the source, for in a naga module a function comes before those that call it.
    let mut images = Vec::new();
    let halves = Halves::of(&module, lanes, by_images);
    let mut text = halves.map(Halves::prelude).unwrap_or_default();
    for (handle, var) in module.global_variables.iter() {
        let Some(form) = Text::of(&module, var).filter(|_| taken_whole(&module, handle)) else { continue };
        let uses = Uses::of(&module, handle);
        let image = by_images && uses.loads && !uses.loads_after_a_store;
        let by_pairs = form.has_pairs() && (lanes <= LANES_OF_PAIRS || !uses.loads);
        if image || by_pairs {
            text += &form.twin(var, image, halves);
            images.extend(var.name.clone().filter(|_| image));
        }
    }
    // Without images speed is no matter, and a compiler takes long over many loads by loops.
    text += &if by_images { unroll::unrolled(source) } else { source.to_owned() };
    let mut module = parse(&text)?;

    redirect::redirect(&mut module);
    halves::write_lanes_down(&mut module);
    read_once(&mut module);
    Ok((module, images))
}

/// Has every entry point read its uniform values into variables of its own before anything else, and everything else
/// take them from there. Where some lanes may be idle, under a condition or in a loop, lavapipe reads a uniform value
/// for each lane by itself.
fn read_once(module: &mut Module) {
    let is_uniform = |var: &GlobalVariable| var.space == AddressSpace::Uniform;
    let uniforms: Vec<_> =
        module.global_variables.iter().filter(|(_, v)| is_uniform(v)).map(|(h, _)| h).collect();
    for uniform in uniforms {
        let var = &module.global_variables[uniform];
        let copy = GlobalVariable {
            name: var.name.as_ref().map(|name| format!("{name}_copy")),
            space: AddressSpace::Private,
            binding: None,
            ..var.clone()
        };
        let copy = module.global_variables.append(copy, Span::default());
        let entry_points = module.entry_points.iter_mut().map(|e| &mut e.function);
        for function in module.functions.iter_mut().map(|(_, f)| f).chain(entry_points) {
            for (_, e) in function.expressions.iter_mut() {
                if *e == Expression::GlobalVariable(uniform) {
                    *e = Expression::GlobalVariable(copy);
                }
            }
        }
        for entry in &mut module.entry_points {
            let mut append = |e| entry.function.expressions.append(e, Span::default());
            let pointer = append(Expression::GlobalVariable(copy));
            let from = append(Expression::GlobalVariable(uniform));
            let value = append(Expression::Load { pointer: from });
            let mut body = Block::new();
            body.push(Statement::Emit(Range::new_from_bounds(value, value)), Span::default());
            body.push(Statement::Store { pointer, value }, Span::default());
            let rest = std::mem::replace(&mut entry.function.body, body);
            entry.function.body.extend_block(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use naga::valid::{Capabilities, ValidationFlags, Validator};
    use naga::{Function, Handle};

    /// Names of the storage and images that the shader touches after [`twinned`].
    fn touched(source: &str, lanes: u32) -> Vec<String> {
        touched_by(source, lanes, true)
    }

    fn touched_by(source: &str, lanes: u32, by_images: bool) -> Vec<String> {
        let (module, images) = twinned(source, lanes, by_images).expect("the source parses");
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::SHADER_INT64);
        let info = validator.validate(&module).expect("what comes out is valid");
        let usage = info.get_entry_point(0);
        let used = module.global_variables.iter().filter(|(v, _)| !usage[*v].is_empty());
        let names: Vec<_> = used.filter_map(|(_, var)| var.name.clone()).collect();
        let as_images: Vec<_> = names.iter().filter_map(|n| n.strip_suffix("_image")).collect();
        assert_eq!(as_images, images, "a binding for each");
        names
    }

    const BINDINGS: &str = "
        @group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
        @group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
        @group(0) @binding(2) var<storage, read_write> z: array<f32>;
        @group(0) @binding(3) var<storage, read_write> m: array<mat2x4<f32>>;
    ";

    fn main(body: &str) -> String {
        format!(
            "{BINDINGS} fn twice(i: u32) -> vec4<f32> {{ return x[i] + x[i]; }}
            @compute @workgroup_size(8) fn main(@builtin(local_invocation_index) i: u32) {{ {body} }}"
        )
    }

    #[test]
    fn loads_go_by_images_and_stores_by_pairs_wherever_they_stand() {
        let nested = main(
            "
            var sum = twice(i);
            for (var k = 0u; k < i; k++) {
                switch k { case 1u: { sum += x[k]; } default: { if k > 3u { y[k] = sum; } else { y[k] = x[i]; } } }
            }
            { y[i] = sum; }
            m[i] = 2.0 * m[i + 1u];
            z[i] = sum.x;
        ",
        );
        for lanes in [8, 16] {
            assert_eq!(touched(&nested, lanes), ["x_image", "y_pairs", "m_pairs", "m_image", "z"]);
        }
        assert_eq!(touched_by(&nested, 8, false), ["x_pairs", "y_pairs", "m_pairs", "z"]);
        assert_eq!(touched_by(&nested, 16, false), ["y_pairs", "x", "z", "m"]);
    }

    #[test]
    fn what_is_loaded_after_a_store_is_no_image() {
        for (body, is_image) in [
            ("let a = y[i]; y[i] = a + x[i];", true),
            ("y[i] = x[i]; z[i] = y[i + 1u].x;", false),
            ("for (var k = 0u; k < i; k++) { y[k] += x[k]; }", false),
            ("for (var k = 0u; k < 9u; k++) { y[i + k] += x[i + k]; }", false),
            ("if i > 2u { y[i] = x[i]; } else { z[i] = y[i].x; }", true),
            ("if i > 2u { y[i] = x[i]; } z[i] = y[i].x;", false),
            ("if NEVER { y[i] = x[i]; } z[i] = y[i].x;", true),
            ("switch i { case 1u: { y[i] = x[i]; } default: { z[i] = y[i].x; } }", false),
            ("{ put(i); } z[i] = y[i].x;", false),
            ("let a = y[i].x; put(i); z[i] = a;", true),
        ] {
            let body = body.replace("y[i].x", "twice_y(i).x").replace("y[i + 1u].x", "twice_y(i + 1u).x");
            let source = format!(
                "const NEVER: bool = false; fn put(i: u32) {{ y[i] = vec4<f32>(); }}
                fn twice_y(i: u32) -> vec4<f32> {{ return y[i] + y[i]; }} {}",
                main(&body)
            );
            // By pairs where they fit a register, as it stands where they do not.
            for (lanes, else_by) in [(8, "y_pairs"), (16, "y")] {
                let names = touched(&source, lanes);
                let load = if is_image { "y_image" } else { else_by };
                assert!(names.contains(&load.to_owned()), "{body}, {lanes} lanes: {names:?}");
                assert_eq!(
                    names.contains(&"y_image".to_owned()),
                    is_image,
                    "{body}, {lanes} lanes: {names:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_taken_in_parts_stays() {
        for part in [
            "y[i].x = x[i].y; m[i][0] = m[i][1]",
            "y[0] = x[1]; m[0] = m[1]",
            "z[i] = f32(arrayLength(&x)); y[i][i] = x[i].x; m[i][i] = y[i]",
        ] {
            let source = main(&format!("{part}; z[i] = x[i].x + y[i].x + m[i][1].x;"));
            assert_eq!(touched(&source, 8), ["x", "y", "z", "m"], "{part}");
        }
    }

    #[test]
    fn a_struct_of_scalars_is_loaded_as_texels_where_it_is_taken_whole() {
        let source = |members: &str, load: &str| {
            format!(
                "struct S {{ {members} }} @group(0) @binding(4) var<storage, read> s: array<S>; {}",
                main(&format!("let a = {load}; z[i] = f32(a) + x[i].x;"))
            )
        };
        let four = "a: u32, b: f32, c: f32, d: u32";
        for (members, load, is_image) in [
            (four, "s[i].a", false),
            (four, "whole(i).a", true),
            ("a: u32, b: f32, c: f32, d: i32", "whole(i).a", false),
            ("a: u32, b: f32, c: f32", "whole(i).a", false),
            ("a: u32, @align(16) b: f32, c: f32, d: u32", "whole(i).a", false),
            (
                &format!("{four}, {}, {}", four.replace(':', "1:"), four.replace(':', "2:")),
                "whole(i).a",
                false,
            ),
            (&format!("{four}, {}", four.replace(':', "1:")), "whole(i).d1", true),
        ] {
            let source = source(members, load) + "fn whole(i: u32) -> S { let now = s[i]; return now; }";
            for lanes in [8, 16] {
                let names = touched(&source, lanes);
                assert_eq!(names.contains(&"s_image".to_owned()), is_image, "{members}, {load}: {names:?}");
                assert_eq!(names.contains(&"s".to_owned()), !is_image, "{members}, {load}: {names:?}");
            }
            let by_pairs = touched_by(&source, 8, false);
            assert!(by_pairs.contains(&"s".to_owned()), "there are no pairs of those: {by_pairs:?}");
        }
    }

    #[test]
    fn vec4_of_u32_are_loaded_as_texels_and_stored_as_they_stand() {
        let source = |access: &str, body: &str| {
            main(body) + &format!("@group(0) @binding(4) var<storage, {access}> s: array<vec4<u32>>;")
        };
        let read = touched(&source("read", "let four = s[i]; z[i] = f32(four[i % 4u]);"), 8);
        assert!(read.contains(&"s_image".to_owned()) && !read.contains(&"s".to_owned()), "{read:?}");
        let part = touched(&source("read", "z[i] = f32(s[i].x);"), 8);
        assert!(part.contains(&"s".to_owned()), "a part is no texel: {part:?}");
        let both = touched(&source("read_write", "s[i] = s[i + 1u];"), 8);
        assert!(["s", "s_image"].iter().all(|s| both.contains(&(*s).to_owned())), "{both:?}");
    }

    #[test]
    fn uniform_values_are_read_once_and_first() {
        let source = "
            struct Params { n: u32, scale: f32 }
            @group(0) @binding(0) var<uniform> params: Params;
            @group(0) @binding(1) var<uniform> slot: vec4<u32>;
            @group(0) @binding(2) var<storage, read_write> y: array<f32>;
            fn scaled(x: f32) -> f32 { return params.scale * x; }
            @compute @workgroup_size(8) fn main(@builtin(local_invocation_index) i: u32) {
                if i >= params.n { return; }
                for (var k = 0u; k < slot.x; k++) { y[k] = scaled(y[k + slot.y]); }
            }";
        assert_eq!(touched(source, 8), ["params", "slot", "y", "params_copy", "slot_copy"]);
        let (module, _) = twinned(source, 8, true).expect("the source parses");
        let is_uniform = |f: &Function, e: Handle<Expression>| {
            matches!(f.expressions[e], Expression::GlobalVariable(var)
                if module.global_variables[var].space == AddressSpace::Uniform)
        };
        let reads = |f: &Function| f.expressions.iter().filter(|(e, _)| is_uniform(f, *e)).count();
        assert!(module.functions.iter().all(|(_, f)| reads(f) == 0), "by the functions: from the copies");
        let entry = &module.entry_points[0].function;
        assert_eq!(reads(entry), 2, "each uniform once");
        let first: Vec<_> = entry.body.iter().take(4).collect();
        assert!(
            matches!(
                first[..],
                [Statement::Emit(_), Statement::Store { .. }, Statement::Emit(_), Statement::Store { .. }]
            ),
            "{first:?}"
        );
    }

    #[test]
    fn a_text_that_does_not_parse_is_refused_in_the_words_of_the_parser() {
        let words = twinned("fn main( {", 8, true).expect_err("that is no shader");
        assert!(words.contains("fn main( {"), "{words}");
    }
}
