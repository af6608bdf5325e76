//! What the tests that walk the list of kernels share: every kernel with every combination of
//! constants that the host can ask for.

use limbeck::gpu::Kernel;
use limbeck::gpu::pipeline::Constants;
use limbeck::kernels;

/// How many variants of each kernel there are. By hand, on purpose: a kernel that falls out of the
/// list, or variants that a loop no longer makes, must not look like a pass.
pub(crate) const EXPECTED: &[(&str, usize)] = &[
    ("gather", 4),
    ("dropout", 2),
    ("matmul_plain", 19),
    ("matmul_vec4", 23),
    ("matmul_tile", 92),
    ("matmul_subgroup", 345),
    ("matmul_reduce", 15),
    ("ensemble", 12),
    ("head", 38),
    ("feature_hint", 1),
    ("feature_similarity", 1),
    ("metrics", 1),
    ("norm", 2),
    ("sgd", 8),
    ("adam", 8),
    ("max_norm", 2),
    ("peak_fma", 3),
    ("peak_copy", 1),
];

/// A kernel with its constants filled in.
pub(crate) struct Variant {
    /// The stem of the shader's file.
    pub(crate) kernel: &'static str,
    /// What was filled in.
    pub(crate) constants: Constants,
    /// The whole text.
    pub(crate) source: String,
}

impl Variant {
    /// The kernel's name and its constants, short enough for a list and good for a file name.
    pub(crate) fn name(&self) -> String {
        let mut name = self.kernel.to_owned();
        for (constant, value) in &self.constants {
            name += &format!(",{constant}={value}");
        }
        name
    }

    /// Whether the code (not a comment) uses something whose name begins with `word`.
    pub(crate) fn uses(&self, word: &str) -> bool {
        let code = self.source.lines().map(|line| line.split("//").next().unwrap_or_default());
        code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'))
            .any(|w| w.starts_with(word))
    }

    /// The text as browsers and Tint want it. naga does without the `enable` line for subgroups and
    /// does not even parse it, so the files cannot have it.
    pub(crate) fn for_browsers(&self) -> String {
        let mut text = String::new();
        for (word, line) in [("subgroup", "enable subgroups;\n"), ("f16", "enable f16;\n")] {
            if self.uses(word) && !self.source.contains(line) {
                text += line;
            }
        }
        text + &self.source
    }
}

/// Every variant of every kernel.
pub(crate) fn variants() -> Vec<Variant> {
    let of = |kernel: &'static Kernel| {
        let specialised = |constants: Constants| Variant {
            kernel: kernel.name,
            source: kernel.specialise(&constants),
            constants,
        };
        (kernel.variants)().into_iter().map(specialised)
    };
    kernels::all().into_iter().flat_map(of).collect()
}

/// How many of each kernel, in order.
pub(crate) fn count<'a>(variants: impl IntoIterator<Item = &'a Variant>) -> Vec<(&'static str, usize)> {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for variant in variants {
        match counted.last_mut() {
            Some((kernel, count)) if *kernel == variant.kernel => *count += 1,
            _ => counted.push((variant.kernel, 1)),
        }
    }
    counted
}

/// A barrier that some invocations of a workgroup may not reach: it can hang a GPU, naga takes it,
/// and a validator that we trust must not.
pub(crate) const NON_UNIFORM_BARRIER: &str = "
@group(0) @binding(0) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
    if lane < out[0] {
        workgroupBarrier();
    }
    out[lane] = 1u;
}
";
