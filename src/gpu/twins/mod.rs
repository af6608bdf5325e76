//! Storage in other forms, for drivers that make one load a loop over the lanes of a subgroup.
//!
//! lavapipe reads and writes each component of a vec4 in such a loop. An image over the same memory (`image`) gives a
//! texel to each lane without one, so whatever is loaded is loaded as texels. Stores, which an image would make no
//! cheaper, go by pairs: seen as `vec2<u64>` the same 16 bytes take two components instead of four, and a
//! `mat2x4<f32>`, which has a loop for each column, one of four. The bits are the same. This is done to what the driver
//! gets, for every kernel in one place; the shaders say vec4 and mat2x4 and know nothing of it.
//!
//! An invocation that stores and then loads would need to see by way of the image what it wrote by way of the buffer:
//! what is used so goes by pairs both ways. A loop that loads puts the lanes together in a register. Where a u64 of each
//! lane does not fit one, it does so in memory, at several times the cost: there it stays as it is.

use std::collections::HashMap;

use naga::{
    AddressSpace, ArraySize, Block, Expression, Function, GlobalVariable, Handle, Literal, Module, Range,
    Scalar, Span, Statement, StorageAccess, TypeInner, VectorSize,
};

use crate::gpu::image;

/// Declares the memory of NAME, an array in storage, a second time, as pairs of floats.
const PAIRS: &str = "@group(0) @binding(INDEX) var<storage, ACCESS> NAME_pairs: array<ELEMENT>;\n";
/// Declares it as an image.
const IMAGE: &str = "@group(0) @binding(IMAGE) var NAME_image: texture_storage_2d<rgba32float, read>;\n";

/// What loads and stores an element.
struct Text {
    element: &'static str,
    load: &'static str,
    load_image: &'static str,
    store: &'static str,
}

/// For arrays of vec4.
const VEC4: Text = Text {
    element: "vec2<u64>",
    load: "\
fn NAME_twin_load(at: u32) -> vec4<f32> {
    let low = vec2<u32>(NAME_pairs[at]);
    let high = vec2<u32>(NAME_pairs[at] >> vec2<u32>(32u));
    return bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y));
}
",
    load_image: "\
fn NAME_twin_load(at: u32) -> vec4<f32> {
    return textureLoad(NAME_image, vec2<u32>(at % WIDTHu, at / WIDTHu));
}
",
    store: "\
fn NAME_twin_store(at: u32, value: vec4<f32>) {
    let x = bitcast<vec4<u32>>(value);
    NAME_pairs[at] = vec2<u64>(x.xz) | vec2<u64>(x.yw) << vec2<u32>(32u);
}
",
};
/// For arrays of mat2x4.
const MAT2X4: Text = Text {
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
    load_image: "\
fn NAME_twin_load(at: u32) -> mat2x4<f32> {
    let place = vec2<u32>(2u * at % WIDTHu, 2u * at / WIDTHu);
    return mat2x4<f32>(textureLoad(NAME_image, place), textureLoad(NAME_image, place + vec2<u32>(1u, 0u)));
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

/// The lanes of 64 bits in the widest register that a CPU has, of 512 bits.
const LANES_OF_PAIRS: u32 = 8;
/// An image's binding is that of its buffer and this.
pub(crate) const IMAGES: u32 = 16;

/// The functions that stand for loads and stores of one binding.
struct Twin {
    load: Handle<Function>,
    store: Option<Handle<Function>>,
}

type Twins = HashMap<Handle<GlobalVariable>, Twin>;

/// Parses a shader so that its `array<vec4<f32>>` and `array<mat2x4<f32>>` in storage are read as images and written by
/// pairs of floats, wherever an element is only ever taken whole and that pays for subgroups of `lanes` lanes. The
/// device must have `SHADER_INT64`. Gives the names of those that are images as well, at bindings of their own; none but
/// `by_images`, without which loads go by pairs too.
///
/// # Errors
/// The parser's message, with the place in the text.
pub fn twinned(source: &str, lanes: u32, by_images: bool) -> Result<(Module, Vec<String>), String> {
    let parse = |text: &str| naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text));
    let module = parse(source)?;
    // In front of the source, for in a naga module a function comes before those that call it.
    let mut images = Vec::new();
    let mut text = String::new();
    for (handle, var) in module.global_variables.iter() {
        let Some(form) = text_of(&module, var).filter(|_| taken_whole(&module, handle)) else { continue };
        let uses = Uses::of(&module, handle);
        let image = by_images && uses.loads && !uses.loads_after_a_store;
        if image || lanes <= LANES_OF_PAIRS || !uses.loads {
            text += &twin(var, form, image);
            images.extend(var.name.clone().filter(|_| image));
        }
    }
    let mut module = parse(&(text + source))?;

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
    for function in module.functions.iter_mut().map(|(_, f)| f).chain(entry_points) {
        redirect(function, &twins);
    }
    Ok((module, images))
}

/// What stands for a variable, by its elements; for one that is an array in storage.
fn text_of(module: &Module, var: &GlobalVariable) -> Option<Text> {
    let (AddressSpace::Storage { .. }, TypeInner::Array { base, size: ArraySize::Dynamic, .. }) =
        (var.space, &module.types[var.ty].inner)
    else {
        return None;
    };
    match module.types[*base].inner {
        TypeInner::Vector { size: VectorSize::Quad, scalar: Scalar::F32 } => Some(VEC4),
        TypeInner::Matrix { columns: VectorSize::Bi, rows: VectorSize::Quad, scalar: Scalar::F32 } => {
            Some(MAT2X4)
        }
        _ => None,
    }
}

/// The text of a variable's twin.
fn twin(var: &GlobalVariable, form: Text, image: bool) -> String {
    let (Some(name), Some(binding)) = (&var.name, &var.binding) else { return String::new() };
    let written =
        matches!(var.space, AddressSpace::Storage { access } if access.contains(StorageAccess::STORE));
    let pairs = if written || !image { PAIRS } else { "" };
    let load = if image { [IMAGE, form.load_image].concat() } else { form.load.to_owned() };
    let store = if written { form.store } else { "" };
    [pairs, &load, store]
        .concat()
        .replace("NAME", name)
        .replace("ELEMENT", form.element)
        .replace("INDEX", &binding.binding.to_string())
        .replace("IMAGE", &(binding.binding + IMAGES).to_string())
        .replace("ACCESS", if written { "read_write" } else { "read" })
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

/// What an invocation may do with the elements of an array.
#[derive(Clone, Copy, Default)]
struct Uses {
    loads: bool,
    stores: bool,
    /// It loads one after it stored one: by way of an image it need not see that.
    loads_after_a_store: bool,
}

impl Uses {
    fn of(module: &Module, var: Handle<GlobalVariable>) -> Self {
        let mut uses = Self::default();
        module.entry_points.iter().for_each(|e| uses.follow(module, var, &e.function, &e.function.body));
        uses
    }

    /// Goes through a block of `f` in the order in which it is executed, but for what stands under a constant
    /// condition that does not hold.
    fn follow(&mut self, module: &Module, var: Handle<GlobalVariable>, f: &Function, block: &Block) {
        let is_element = |pointer: Handle<Expression>| {
            matches!(f.expressions[pointer], Expression::Access { base, .. }
                if f.expressions[base] == Expression::GlobalVariable(var))
        };
        let is_load = |e| matches!(f.expressions[e], Expression::Load { pointer } if is_element(pointer));
        for statement in block {
            match statement {
                Statement::Emit(range) if range.clone().any(is_load) => {
                    self.loads = true;
                    self.loads_after_a_store |= self.stores;
                }
                Statement::Store { pointer, .. } if is_element(*pointer) => self.stores = true,
                Statement::Call { function, .. } => {
                    let callee = &module.functions[*function];
                    self.follow(module, var, callee, &callee.body);
                }
                Statement::Block(inner) => self.follow(module, var, f, inner),
                Statement::If { condition, accept, reject } => {
                    let holds = constant(module, f, *condition);
                    let ways = [(accept, Some(false)), (reject, Some(true))];
                    self.follow_one(module, var, f, ways.into_iter().filter(|w| w.1 != holds).map(|w| w.0));
                }
                // Some case comes after another where that one falls through: what is the same to a walk of all
                // of them, twice.
                Statement::Switch { cases, .. } => {
                    (0..2).for_each(|_| self.follow_one(module, var, f, cases.iter().map(|c| &c.body)));
                }
                Statement::Loop { body, continuing, .. } => {
                    for block in [body, continuing, body, continuing] {
                        self.follow(module, var, f, block);
                    }
                }
                _ => {}
            }
        }
    }

    /// One of these blocks is executed.
    fn follow_one<'a>(
        &mut self,
        module: &Module,
        var: Handle<GlobalVariable>,
        f: &Function,
        blocks: impl IntoIterator<Item = &'a Block>,
    ) {
        let before = *self;
        for block in blocks {
            let mut way = before;
            way.follow(module, var, f, block);
            self.loads |= way.loads;
            self.stores |= way.stores;
            self.loads_after_a_store |= way.loads_after_a_store;
        }
    }
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
            ("for (var k = 0u; k < 9u; k++) { y[k] += x[k]; }", false),
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
    fn a_text_that_does_not_parse_is_refused_in_the_words_of_the_parser() {
        let words = twinned("fn main( {", 8, true).expect_err("that is no shader");
        assert!(words.contains("fn main( {"), "{words}");
    }
}
