//! Stores by halves of a subgroup.
//!
//! lavapipe stores by a loop over the lanes. For each it puts every register into memory and loads what the lane has in it
//! from there. Of a register of 512 bits Intel's CPUs hand a load what lies in the lower half at once; what lies in the
//! upper one it gets when all stores before it are through (docs/performance.md has the measurements). So the lower lanes
//! store what they have, and then what their partners in the upper half have. The elements and the bits are the same.
//! Where a shader declares a constant `NEIGHBOURS` that is true, it promises that a vec4 of an upper lane lies behind its
//! partner's, at an odd index, and that both are stored or neither is: then the lower lane stores them at once.
//!
//! That takes both lanes of a pair at the same place. [`Lanes`] says whether they are: an early return at the top of a
//! function leaves those alone whose partners it takes; below a branch and in a loop every lane stores for itself.

use naga::{
    AddressSpace, Binding, Block, BuiltIn, EntryPoint, Expression, FunctionArgument, GlobalVariable, Handle,
    LocalVariable, Module, Span, Statement,
};

use super::LANES_OF_PAIRS;
use super::uses::holds;

/// The halves of a subgroup.
#[derive(Clone, Copy)]
pub(super) struct Halves {
    /// Of each.
    pub(super) lanes: u32,
    /// Whether what the upper lanes store lies behind what their partners do, element by element.
    pub(super) neighbours: bool,
}

impl Halves {
    /// Where stores are to go by halves: where a register has an upper one, and no lane is without a partner from the
    /// beginning. Neighbours are promised by the shader, and all at one place only if its loops are `unrolled`.
    pub(super) fn of(module: &Module, lanes: u32, unrolled: bool) -> Option<Self> {
        let whole = |e: &EntryPoint| e.workgroup_size.iter().product::<u32>().is_multiple_of(lanes);
        (lanes > LANES_OF_PAIRS && module.entry_points.iter().all(whole))
            .then(|| Self { lanes: lanes / 2, neighbours: unrolled && holds(module, "NEIGHBOURS") })
    }

    /// What stores by halves call.
    pub(super) fn prelude(self) -> String {
        let Self { lanes, .. } = self;
        format!(
            "var<private> twin_lane: u32;
fn twin_is_alone(leaves: bool) -> bool {{
    return subgroupShuffleXor(u32(leaves), {lanes}u) == 1u;
}}
"
        )
    }
}

/// Has every entry point write down its lane, before anything else, for the functions of [`prelude`].
pub(super) fn write_lanes_down(module: &mut Module) {
    let is_lane =
        |v: &GlobalVariable| v.space == AddressSpace::Private && v.name.as_deref() == Some("twin_lane");
    let Some((lane, var)) = module.global_variables.iter().find(|(_, v)| is_lane(v)) else { return };
    let binding = Some(Binding::BuiltIn(BuiltIn::SubgroupInvocationId));
    for EntryPoint { function, .. } in &mut module.entry_points {
        let index = function.arguments.iter().position(|a| a.binding == binding).unwrap_or_else(|| {
            function.arguments.push(FunctionArgument { name: None, ty: var.ty, binding: binding.clone() });
            function.arguments.len() - 1
        });
        let mut append = |e| function.expressions.append(e, Span::default());
        let pointer = append(Expression::GlobalVariable(lane));
        let value = append(Expression::FunctionArgument(index as u32));
        let mut body = Block::from_vec(vec![Statement::Store { pointer, value }]);
        body.extend_block(std::mem::take(&mut function.body));
        function.body = body;
    }
}

/// Which lanes of a subgroup are at the place that a walk through a function has come to.
#[derive(Clone, Copy)]
pub(super) enum Lanes {
    /// All of them.
    All,
    /// Some have returned, and this variable of those that have not says whether a lane's partner is among them.
    Left(Handle<LocalVariable>),
    /// Nobody knows.
    Unknown,
}

/// Who returns in an `if` that all lanes have come to.
pub(super) enum Return {
    Nobody,
    /// Those for which the condition holds.
    Accepted,
    Somebody,
}

impl Return {
    pub(super) fn of(accept: &Block, reject: &Block) -> Self {
        match (returns(accept), returns(reject), accept.last()) {
            (false, false, _) => Self::Nobody,
            (true, false, Some(Statement::Return { .. })) => Self::Accepted,
            _ => Self::Somebody,
        }
    }
}

/// Whether there is a return somewhere in a block.
pub(super) fn returns(block: &Block) -> bool {
    block.iter().any(|statement| match statement {
        Statement::Return { .. } | Statement::Kill => true,
        Statement::Block(inner) => returns(inner),
        Statement::If { accept, reject, .. } => returns(accept) || returns(reject),
        Statement::Switch { cases, .. } => cases.iter().any(|case| returns(&case.body)),
        Statement::Loop { body, continuing, .. } => returns(body) || returns(continuing),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::twinned;
    use super::*;

    use naga::valid::{Capabilities, ValidationFlags, Validator};
    use naga::{Scalar, TypeInner, VectorSize};

    /// What the entry point calls, and then `put` where it calls that, for subgroups of 16 lanes: the stores, and `alone`
    /// where those whose partners return are noted.
    fn calls(workgroup: u32, body: &str) -> String {
        let source = format!(
            "@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;
            @group(0) @binding(1) var<storage, read_write> m: array<mat2x4<f32>>;
            const NEVER: bool = false;
            const ALWAYS: bool = true;
            fn put(i: u32) {{ y[i] = vec4<f32>(); }}
            @compute @workgroup_size({workgroup}) fn main(@builtin(local_invocation_index) i: u32) {{ {body} }}"
        );
        let (module, _) = twinned(&source, 16, true).expect("the source parses");
        Validator::new(ValidationFlags::all(), Capabilities::SHADER_INT64 | Capabilities::SUBGROUP)
            .validate(&module)
            .expect("what comes out is valid");
        let mut names = Vec::new();
        let put =
            module.functions.iter().find(|(_, f)| f.name.as_deref() == Some("put")).expect("put is there").1;
        called(&module, &module.entry_points[0].function.body, &mut names);
        if body.contains("put(i)") {
            called(&module, &put.body, &mut names);
        }
        names.join(" ")
    }

    fn called(module: &Module, block: &Block, names: &mut Vec<&'static str>) {
        for statement in block {
            match statement {
                Statement::Call { function, .. } => match module.functions[*function].name.as_deref() {
                    Some("y_twin_store" | "m_twin_store") => names.push("each"),
                    Some("y_twin_store_by_halves" | "m_twin_store_by_halves") => names.push("halves"),
                    Some("twin_is_alone") => names.push("alone"),
                    _ => {}
                },
                Statement::Block(inner) => called(module, inner, names),
                Statement::If { accept, reject, .. } => {
                    [accept, reject].into_iter().for_each(|block| called(module, block, names));
                }
                Statement::Switch { cases, .. } => {
                    cases.iter().for_each(|case| called(module, &case.body, names))
                }
                Statement::Loop { body, .. } => called(module, body, names),
                _ => {}
            }
        }
    }

    #[test]
    fn lanes_store_by_halves_where_pairs_of_them_are_known_to_be_together() {
        let y = "y[i] = vec4<f32>();";
        let m = "m[i] = mat2x4<f32>();";
        for (body, expected) in [
            (format!("{y} {{ {m} }}"), "halves halves"),
            (format!("for (var k = 0u; k < i; k++) {{ {y} }} {m}"), "each halves"),
            (format!("if i > 3u {{ {y} }} else {{ {y} }} {m}"), "each each halves"),
            (format!("switch i {{ case 3u: {{ {y} }} default: {{}} }} {m}"), "each halves"),
            // An early return.
            (format!("if i > 3u || i < 1u {{ return; }} {y} {m}"), "alone halves halves"),
            (format!("if i > 3u {{ {m} return; }} {y}"), "alone each halves"),
            (format!("if i > 3u {{ return; }} {{ if i > 2u {{ return; }} {y} }}"), "alone alone halves"),
            // What a constant decides; what is never reached is no other.
            (format!("if NEVER {{ if i > 3u {{ return; }} }} {y}"), "alone halves"),
            (format!("if ALWAYS {{ {y} put(i); }} else {{ put(i); }} {m}"), "halves halves halves"),
            (format!("if ALWAYS {{ if i > 3u {{ return; }} {y} }} {m}"), "alone halves halves"),
            (format!("{y} {{ if ALWAYS {{ return; }} {y} }} {y}"), "halves halves halves"),
            (
                format!("for (var k = 0u; k < i; k++) {{ if ALWAYS {{ {y} continue; }} {y} }} {m}"),
                "each each halves",
            ),
            // Of those that return below, it is not known who they are.
            (format!("if i > 3u {{ if i > 4u {{ return; }} }} {y}"), "each"),
            (format!("if i > 3u {{ }} else {{ return; }} {y}"), "each"),
            (format!("if i > 3u {{ if i > 4u {{ return; }} return; }} {y}"), "alone halves"),
            (format!("switch i {{ case 3u: {{ return; }} default: {{}} }} {y}"), "each"),
            (format!("loop {{ if i > 3u {{ return; }} break; }} {y}"), "each"),
            (format!("if i > 3u {{ if i > 4u {{ return; }} }} if i > 5u {{ return; }} {y}"), "each"),
            // A function, by where it is called.
            ("put(i);".to_owned(), "halves"),
            (format!("put(i); if i > 3u {{ return; }} {y}"), "alone halves halves"),
            ("if i > 3u { return; } put(i);".to_owned(), "alone each"),
            ("put(i); if i > 3u { put(i); }".to_owned(), "each"),
            ("for (var k = 0u; k < i; k++) { put(i); }".to_owned(), "each"),
        ] {
            assert_eq!(calls(32, &body), expected, "{body}");
        }
        assert_eq!(calls(24, y), "each", "the last lanes have no partners");
    }

    #[test]
    fn neighbours_are_stored_at_once_where_the_shader_promises_them() {
        let source = |constant: &str, body: &str| {
            format!(
                "@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;
                const LANES = 16u;
                {constant}
                @compute @workgroup_size(16) fn main(@builtin(subgroup_invocation_id) i: u32) {{
                    let at = i % 8u * 2u + i / 8u;
                    for (var k = 0u; k < 2u; k++) {{ {body} }}
                }}"
            )
        };
        let whole = "y[k * 16u + at] = vec4<f32>(f32(at));";
        let both = |constant: &str, body: &str, lanes: u32, by_images: bool| {
            let (module, _) = twinned(&source(constant, body), lanes, by_images).expect("the source parses");
            let valid =
                Validator::new(ValidationFlags::all(), Capabilities::SHADER_INT64 | Capabilities::SUBGROUP)
                    .validate(&module);
            let pairs = module.global_variables.iter().find(|(_, v)| v.name.as_deref() == Some("y_pairs"));
            let TypeInner::Array { base, .. } = module.types[pairs.expect("they are").1.ty].inner else {
                panic!("no array");
            };
            (valid.is_ok(), module.types[base].inner.clone())
        };
        let promised = "const NEIGHBOURS: bool = LANES == 16u;";
        let [two, four] = [VectorSize::Bi, VectorSize::Quad]
            .map(|size| (true, TypeInner::Vector { size, scalar: Scalar::U64 }));
        assert_eq!(both(promised, whole, 16, true), four);
        assert_eq!(both("const NEIGHBOURS: bool = LANES == 8u;", whole, 16, true), two);
        assert_eq!(both("", whole, 16, true), two);
        assert_eq!(both(promised, whole, 8, true), two, "there are no halves");
        assert_eq!(both(promised, whole, 16, false), two, "a loop is not one place");
        assert!(!both(promised, &format!("if i > 3u {{ {whole} }}"), 16, true).0, "nor is a branch");
    }
}
