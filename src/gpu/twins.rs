//! Storage in other forms, for drivers that make one load a loop over the lanes of a subgroup.
//!
//! lavapipe reads and writes each component of a vec4 in such a loop. Seen as `vec2<u64>` the same 16
//! bytes take two components instead of four, with the same bits, and a `mat2x4<f32>`, which has a loop for
//! each column, one of four. What is only read, and often, can be an image that follows the memory
//! (`image`): a texel for each lane comes without a loop. This is done to what the driver gets, for
//! every kernel in one place; the shaders say vec4 and mat2x4 and know nothing of it.
//!
//! A loop that loads puts the lanes together in a register. Where a u64 of each lane does not fit one, it does so in
//! memory, at several times the cost: there only what is never loaded goes by pairs.

use std::collections::HashMap;

use naga::{
    AddressSpace, ArraySize, Block, Expression, Function, GlobalVariable, Handle, Literal, Module, Range,
    Scalar, Span, Statement, StorageAccess, TypeInner, VectorSize,
};

use crate::gpu::image;

/// Declares the memory of NAME, an array of vec4, a second time, with what loads and stores an element.
const VEC4: Text = Text {
    load: "\
@group(0) @binding(INDEX) var<storage, ACCESS> NAME_pairs: array<vec2<u64>>;
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
};
/// The same for an array of mat2x4.
const MAT2X4: Text = Text {
    load: "\
@group(0) @binding(INDEX) var<storage, ACCESS> NAME_pairs: array<vec4<u64>>;
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
};

/// What stands for an array of vec4 that is an image.
const IMAGE: Text = Text {
    load: "\
@group(0) @binding(INDEX) var NAME_image: texture_storage_2d<rgba32float, read>;
fn NAME_twin_load(at: u32) -> vec4<f32> {
    return textureLoad(NAME_image, vec2<u32>(at % WIDTHu, at / WIDTHu));
}
",
    store: "",
};

/// The lanes of 64 bits in the widest register that a CPU has, of 512 bits.
const LANES_OF_PAIRS: u32 = 8;

struct Text {
    load: &'static str,
    store: &'static str,
}

/// The functions that stand for loads and stores of one binding.
struct Twin {
    load: Handle<Function>,
    store: Option<Handle<Function>>,
}

type Twins = HashMap<Handle<GlobalVariable>, Twin>;

/// Parses a shader so that its `array<vec4<f32>>` and `array<mat2x4<f32>>` in storage are read and written by
/// pairs of floats, wherever an element is only ever taken whole and that pays for subgroups of `lanes` lanes. The
/// device must have `SHADER_INT64`. Those of vec4 that are named in `images` are images instead.
///
/// # Errors
/// The parser's message, with the place in the text; what is named in `images` and cannot be one.
pub fn twinned(source: &str, images: &[&str], lanes: u32) -> Result<Module, String> {
    let parse = |text: &str| naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text));
    let module = parse(source)?;
    // In front of the source, for in a naga module a function comes before those that call it.
    let twins = module.global_variables.iter().filter_map(|(handle, var)| {
        let text = text_of(&module, var, images).filter(|_| taken_whole(&module, handle))?;
        let pays = lanes <= LANES_OF_PAIRS || is_image(var, images) || !is_loaded(&module, handle);
        pays.then(|| twin(var, text))
    });
    let text = twins.chain([source.to_owned()]).collect::<String>();
    let mut module = parse(&text)?;

    let named =
        |name: String| module.functions.iter().find(|(_, f)| f.name.as_ref() == Some(&name)).map(|(h, _)| h);
    let twins: Twins = module
        .global_variables
        .iter()
        .filter_map(|(handle, var)| {
            let name = var.name.as_ref()?;
            let load = named(format!("{name}_twin_load"))?;
            Some((handle, Twin { load, store: named(format!("{name}_twin_store")) }))
        })
        .collect();
    let entry_points = module.entry_points.iter_mut().map(|e| &mut e.function);
    for name in images {
        if named(format!("{name}_twin_load")).is_none() {
            return Err(format!(
                "`{name}` cannot be an image: no array of vec4 of which elements are only taken whole"
            ));
        }
    }
    for function in module.functions.iter_mut().map(|(_, f)| f).chain(entry_points) {
        redirect(function, &twins);
    }
    Ok(module)
}

/// What stands for a variable, by its elements; for one that is an array in storage.
fn text_of(module: &Module, var: &GlobalVariable, images: &[&str]) -> Option<Text> {
    let (AddressSpace::Storage { access }, TypeInner::Array { base, size: ArraySize::Dynamic, .. }) =
        (var.space, &module.types[var.ty].inner)
    else {
        return None;
    };
    if is_image(var, images) {
        let vec4 = TypeInner::Vector { size: VectorSize::Quad, scalar: Scalar::F32 };
        return Some(IMAGE).filter(|_| module.types[*base].inner == vec4 && access == StorageAccess::LOAD);
    }
    match module.types[*base].inner {
        TypeInner::Vector { size: VectorSize::Quad, scalar: Scalar::F32 } => Some(VEC4),
        TypeInner::Matrix { columns: VectorSize::Bi, rows: VectorSize::Quad, scalar: Scalar::F32 } => {
            Some(MAT2X4)
        }
        _ => None,
    }
}

fn is_image(var: &GlobalVariable, images: &[&str]) -> bool {
    var.name.as_deref().is_some_and(|name| images.contains(&name))
}

/// The text of a variable's twin.
fn twin(var: &GlobalVariable, Text { load, store }: Text) -> String {
    let (Some(name), Some(binding)) = (&var.name, &var.binding) else { return String::new() };
    let (text, access) = match var.space {
        AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => {
            ([load, store].concat(), "read_write")
        }
        _ => (load.to_owned(), "read"),
    };
    text.replace("NAME", name)
        .replace("INDEX", &binding.binding.to_string())
        .replace("ACCESS", access)
        .replace("WIDTH", &image::WIDTH.to_string())
}

fn functions(module: &Module) -> impl Iterator<Item = &Function> {
    module.functions.iter().map(|(_, f)| f).chain(module.entry_points.iter().map(|e| &e.function))
}

/// Whether no shader asks the length of the array `var`, an element by a constant index, or a part of one.
fn taken_whole(module: &Module, var: Handle<GlobalVariable>) -> bool {
    functions(module).all(|f| {
        let is_var = |e: Handle<Expression>| f.expressions[e] == Expression::GlobalVariable(var);
        let is_element = |e| matches!(f.expressions[e], Expression::Access { base, .. } if is_var(base));
        f.expressions.iter().all(|(_, e)| match *e {
            Expression::Access { base, .. } => !is_element(base),
            Expression::AccessIndex { base, .. } => !is_var(base) && !is_element(base),
            Expression::ArrayLength(array) => !is_var(array),
            _ => true,
        })
    })
}

/// Whether a shader may load an element of the array `var`: not by what stands under a constant condition that
/// does not hold.
fn is_loaded(module: &Module, var: Handle<GlobalVariable>) -> bool {
    functions(module).any(|f| {
        let is_load = |e: Handle<Expression>| {
            let Expression::Load { pointer } = f.expressions[e] else { return false };
            let Expression::Access { base, .. } = f.expressions[pointer] else { return false };
            f.expressions[base] == Expression::GlobalVariable(var)
        };
        may_evaluate(module, f, &f.body, &is_load)
    })
}

/// Whether a block of `f` may evaluate an expression that `is_wanted`.
fn may_evaluate(
    module: &Module,
    f: &Function,
    block: &Block,
    is_wanted: &impl Fn(Handle<Expression>) -> bool,
) -> bool {
    let may = |block: &Block| may_evaluate(module, f, block, is_wanted);
    block.iter().any(|statement| match statement {
        Statement::Emit(range) => range.clone().any(is_wanted),
        Statement::Block(inner) => may(inner),
        Statement::If { condition, accept, reject } => {
            let holds = constant(module, f, *condition);
            holds != Some(false) && may(accept) || holds != Some(true) && may(reject)
        }
        Statement::Switch { cases, .. } => cases.iter().any(|case| may(&case.body)),
        Statement::Loop { body, continuing, .. } => may(body) || may(continuing),
        _ => false,
    })
}

/// What a condition always is, where it is written down.
fn constant(module: &Module, f: &Function, condition: Handle<Expression>) -> Option<bool> {
    let expression = match f.expressions[condition] {
        Expression::Constant(constant) => &module.global_expressions[module.constants[constant].init],
        ref other => other,
    };
    match expression {
        Expression::Literal(Literal::Bool(holds)) => Some(*holds),
        _ => None,
    }
}

/// Turns a function's loads and stores of the elements of twinned arrays into calls.
fn redirect(function: &mut Function, twins: &Twins) {
    let expressions = &mut function.expressions;
    let elements: HashMap<_, _> = expressions
        .iter()
        .filter_map(|(handle, e)| {
            let Expression::Access { base, index } = *e else { return None };
            let Expression::GlobalVariable(var) = expressions[base] else { return None };
            Some((handle, Element { twin: twins.get(&var)?, index }))
        })
        .collect();
    let mut loads = HashMap::new();
    for (handle, e) in expressions.iter_mut() {
        if let Expression::Load { pointer } = *e
            && let Some(element) = elements.get(&pointer)
        {
            *e = Expression::CallResult(element.twin.load);
            loads.insert(handle, element);
        }
    }
    let body = std::mem::take(&mut function.body);
    function.body = Redirect { elements: &elements, loads }.block(body);
}

/// Element `index` of a twinned array.
struct Element<'a> {
    twin: &'a Twin,
    index: Handle<Expression>,
}

struct Redirect<'a> {
    /// What points to an element; nothing evaluates it any more.
    elements: &'a HashMap<Handle<Expression>, Element<'a>>,
    /// What was a load and is the result of a call now.
    loads: HashMap<Handle<Expression>, &'a Element<'a>>,
}

impl Redirect<'_> {
    fn block(&self, block: Block) -> Block {
        let mut to = Block::with_capacity(block.len());
        for (statement, span) in block.span_into_iter() {
            match statement {
                Statement::Emit(range) => self.emit(range, span, &mut to),
                Statement::Store { pointer, value } => to.push(self.store(pointer, value), span),
                Statement::Block(inner) => to.push(Statement::Block(self.block(inner)), span),
                Statement::If { condition, accept, reject } => {
                    let (accept, reject) = (self.block(accept), self.block(reject));
                    to.push(Statement::If { condition, accept, reject }, span);
                }
                Statement::Switch { selector, mut cases } => {
                    for case in &mut cases {
                        case.body = self.block(std::mem::take(&mut case.body));
                    }
                    to.push(Statement::Switch { selector, cases }, span);
                }
                Statement::Loop { body, continuing, break_if } => {
                    let (body, continuing) = (self.block(body), self.block(continuing));
                    to.push(Statement::Loop { body, continuing, break_if }, span);
                }
                other => to.push(other, span),
            }
        }
        to
    }

    fn store(&self, pointer: Handle<Expression>, value: Handle<Expression>) -> Statement {
        let element = self.elements.get(&pointer);
        // A store to what is declared read-only stays, for the validator to refuse.
        match element.and_then(|e| Some((e.twin.store?, vec![e.index, value]))) {
            Some((function, arguments)) => Statement::Call { function, arguments, result: None },
            None => Statement::Store { pointer, value },
        }
    }

    /// Evaluates `range` with calls in the places of the loads.
    fn emit(&self, range: Range<Expression>, span: Span, to: &mut Block) {
        let mut run: Option<(Handle<Expression>, Handle<Expression>)> = None;
        let flush = |run: &mut Option<_>, to: &mut Block| {
            if let Some((first, last)) = run.take() {
                to.push(Statement::Emit(Range::new_from_bounds(first, last)), span);
            }
        };
        for handle in range {
            if let Some(element) = self.loads.get(&handle) {
                flush(&mut run, to);
                let (function, arguments) = (element.twin.load, vec![element.index]);
                to.push(Statement::Call { function, arguments, result: Some(handle) }, span);
            } else if self.elements.contains_key(&handle) {
                flush(&mut run, to);
            } else {
                run = Some((run.map_or(handle, |(first, _)| first), handle));
            }
        }
        flush(&mut run, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use naga::valid::{Capabilities, ValidationFlags, Validator};

    /// Names of the storage that the shader touches after [`twinned`].
    fn touched(source: &str, images: &[&str], lanes: u32) -> Vec<String> {
        let module = twinned(source, images, lanes).expect("the source parses");
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::SHADER_INT64);
        let info = validator.validate(&module).expect("what comes out is valid");
        let usage = info.get_entry_point(0);
        let used = module.global_variables.iter().filter(|(v, _)| !usage[*v].is_empty());
        used.filter_map(|(_, var)| var.name.clone()).collect()
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
    fn loads_and_stores_of_whole_vec4_go_by_pairs_wherever_they_stand() {
        let nested = main(
            "
            var sum = twice(i);
            for (var k = 0u; k < i; k++) {
                switch k { case 1u: { sum += x[k] * y[k + 1u]; } default: { if k > 3u { y[k] = sum; } else { y[k] += x[i]; } } }
            }
            { y[i] = sum; }
            m[i] = 2.0 * m[i + 1u];
            z[i] = sum.x;
        ",
        );
        assert_eq!(touched(&nested, &[], 8), ["x_pairs", "y_pairs", "m_pairs", "z"]);
        assert_eq!(touched(&nested, &["x"], 8), ["x_image", "y_pairs", "m_pairs", "z"]);
    }

    #[test]
    fn where_pairs_do_not_fit_a_register_only_what_is_never_loaded_goes_by_them() {
        let update = "y[i] = x[i]; m[i] = 2.0 * m[i];";
        assert_eq!(touched(&main(update), &[], 16), ["y_pairs", "x", "m"]);
        assert_eq!(touched(&main(update), &["x"], 16), ["x_image", "y_pairs", "m"]);
        for (condition, y) in [("ADD", "y_pairs"), ("!ADD", "y"), ("WAY == 1u", "y_pairs"), ("i > 1u", "y")] {
            let body = format!("if {condition} {{ y[i] += x[i]; }} else {{ y[i] = x[i]; }}");
            let source = format!("const ADD: bool = false; const WAY: u32 = 0u; {}", main(&body));
            let names = touched(&source, &[], 16);
            assert!(names.contains(&y.to_owned()), "{condition}: {names:?}");
        }
    }

    #[test]
    fn what_is_taken_in_parts_stays() {
        for part in [
            "y[i].x = x[i].y; m[i][0] = m[i][1]",
            "y[0] = x[1]; m[0] = m[1]",
            "z[i] = f32(arrayLength(&x)); y[i][i] = x[i].x; m[i][i] = y[i]",
        ] {
            let read = "z[i] = x[i].x + y[i].x + m[i][1].x";
            let source = main(&format!("{part}; {read};"));
            assert_eq!(touched(&source, &[], 8), ["x", "y", "z", "m"], "{part}");
            let words = twinned(&source, &["x"], 8).expect_err("taken in parts");
            assert!(words.contains("`x`"), "{words}");
        }
    }

    #[test]
    fn only_what_is_read_whole_as_vec4_can_be_an_image() {
        let source = main("y[i] = x[i]; m[i] = m[i + 1u]; z[i] = x[i].x;");
        for name in ["y", "z", "m", "nothing"] {
            let words = twinned(&source, &[name], 8).expect_err("no array of vec4 that is only read");
            assert!(words.contains(&format!("`{name}`")), "{words}");
        }
    }

    #[test]
    fn a_text_that_does_not_parse_is_refused_in_the_words_of_the_parser() {
        let words = twinned("fn main( {", &[], 8).expect_err("that is no shader");
        assert!(words.contains("fn main( {"), "{words}");
    }
}
