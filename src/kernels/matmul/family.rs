//! The members of the matmul family, the shapes of tile they come in, and which one a product gets.
//!
//! | member | idea | where it wins |
//! |---|---|---|
//! | plain | one output per invocation | nowhere: the baseline |
//! | vec4 | a 4x4 register tile, operands loaded as vec4 | drivers that keep arrays in memory; where nothing else runs |
//! | tile | workgroup-memory tiles and register tiles; `tile4` shares the k of a tile among four parts of a workgroup | GPUs |
//! | subgroup | each lane loads other rows of A, the subgroup hands them round | narrow SIMD such as lavapipe |
//!
//! Any of the last three may split K: partial products first, then `matmul_reduce` adds them in a
//! fixed order and applies the epilogue.

use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::{Gpu, Kernel};
use crate::kernels::matmul::{Flags, Form, Params};

macro_rules! member {
    ($(#[$doc:meta])* $name:ident, $stem:literal) => {
        $(#[$doc])*
        pub static $name: Kernel = Kernel {
            name: $stem,
            source: shader!($stem),
            params: Params::FIELDS,
            variants: || variants_of($stem),
        };
    };
}
member!(/** `shaders/matmul_plain.wgsl` */ PLAIN, "matmul_plain");
member!(/** `shaders/matmul_vec4.wgsl` */ VEC4, "matmul_vec4");
member!(/** `shaders/matmul_tile.wgsl` */ TILE, "matmul_tile");
member!(/** `shaders/matmul_subgroup.wgsl` */ SUBGROUP, "matmul_subgroup");
member!(/** `shaders/matmul_reduce.wgsl` */ REDUCE, "matmul_reduce");

/// In how many parts K may be split.
pub const SPLITS: [u32; 2] = [1, 4];

/// A member with its tile.
pub struct Variant {
    /// Member and tile, `subgroup8-32x64`: the name in profiles, benchmarks and doctor. The number before the dash
    /// says a subgroup's lanes, or a tile's slices of k.
    pub name: &'static str,
    /// The shader.
    pub kernel: &'static Kernel,
    /// Its tile constants.
    pub constants: &'static [(&'static str, u32)],
    /// Rows and columns of C that a workgroup makes.
    pub tile: [u32; 2],
    /// The exact subgroup size it needs, or 0.
    pub lanes: u32,
    /// Whether it makes C transposed, from operands that have changed places.
    pub turned: bool,
}

impl std::fmt::Debug for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Variant {
    /// Whether this device can run it.
    pub fn runs_on(&self, gpu: &Gpu) -> bool {
        self.lanes == 0 || gpu.has_subgroups_of(self.lanes)
    }

    /// Whether K can be split.
    pub fn splits(&self) -> bool {
        self.kernel.name != PLAIN.name
    }

    /// Its constants, for a C of whole `pairs` of vec4 or for any.
    pub(super) fn constants(&self, flags: &Flags, splits: u32, pairs: bool) -> Constants {
        // So many lanes store by halves, where any do (gpu::twins). A turned tile has no neighbours: lanes are rows of C.
        let neighbours = (pairs && self.lanes == 16 && !self.turned).then_some(("NEIGHBOURS", Constant::Bool(true)));
        let tile = self.constants.iter().map(|(name, value)| (*name, Constant::U32(*value)));
        let splits = self.splits().then_some(("SPLITS", Constant::U32(splits)));
        let turned = self.turned.then_some(("TURNED", Constant::Bool(true)));
        tile.chain(splits).chain(turned).chain(neighbours).chain(flags.constants(self.turned)).collect()
    }
}

macro_rules! subgroup {
    ($name:literal, $lanes:literal, $blocks:literal, $vecs:literal) => {
        Variant {
            name: $name,
            kernel: &SUBGROUP,
            constants: &[("LANES", $lanes), ("ROW_BLOCKS", $blocks), ("COL_VECS", $vecs)],
            tile: [$lanes * $blocks, $lanes * $vecs * 4],
            lanes: $lanes,
            turned: false,
        }
    };
}
macro_rules! turned {
    ($name:literal, $lanes:literal, $blocks:literal, $vecs:literal) => {
        Variant {
            tile: [$lanes * $vecs * 4, $lanes * $blocks],
            turned: true,
            ..subgroup!($name, $lanes, $blocks, $vecs)
        }
    };
}
macro_rules! vec4 {
    ($name:literal, $group_rows:literal, $group_cols:literal) => {
        Variant {
            name: $name,
            kernel: &VEC4,
            constants: &[("GROUP_ROWS", $group_rows), ("GROUP_COLS", $group_cols)],
            tile: [4 * $group_rows, 4 * $group_cols],
            lanes: 0,
            turned: false,
        }
    };
}
macro_rules! tile {
    ($name:literal, $rows:literal, $vecs:literal, $group_rows:literal, $group_cols:literal, $slices:literal, $k:literal) => {
        Variant {
            name: $name,
            kernel: &TILE,
            constants: &[
                ("ROWS", $rows),
                ("COL_VECS", $vecs),
                ("GROUP_ROWS", $group_rows),
                ("GROUP_COLS", $group_cols),
                ("SLICES", $slices),
                ("TILE_K", $k),
            ],
            tile: [$rows * $group_rows, 4 * $vecs * $group_cols],
            lanes: 0,
            turned: false,
        }
    };
}

/// Every variant there is, the baseline first.
pub static VARIANTS: &[Variant] = &[
    Variant { name: "plain", kernel: &PLAIN, constants: &[], tile: [8, 8], lanes: 0, turned: false },
    vec4!("vec4-32x32", 8, 8),
    tile!("tile-64x64", 8, 2, 8, 8, 1, 16),
    tile!("tile2-32x32", 4, 1, 8, 8, 2, 32),
    tile!("tile4-32x32", 4, 1, 8, 8, 4, 48),
    tile!("tile4-16x16", 1, 1, 16, 4, 4, 64),
    subgroup!("subgroup4-8x16", 4, 2, 1),
    subgroup!("subgroup4-32x32", 4, 8, 2),
    subgroup!("subgroup8-16x64", 8, 2, 2),
    subgroup!("subgroup8-32x32", 8, 4, 1),
    subgroup!("subgroup8-32x64", 8, 4, 2),
    turned!("subgroup8-32x16", 8, 2, 1),
    subgroup!("subgroup16-16x64", 16, 1, 1),
    subgroup!("subgroup16-32x64", 16, 2, 1),
    subgroup!("subgroup16-48x64", 16, 3, 1),
    turned!("subgroup16-64x16", 16, 1, 1),
    turned!("subgroup16-64x48", 16, 3, 1),
    subgroup!("subgroup32-64x128", 32, 2, 1),
];

/// The variant of that name.
pub fn named(name: &str) -> Option<&'static Variant> {
    VARIANTS.iter().find(|v| v.name == name)
}

/// Every combination of constants that `record` may ask a member for.
fn variants_of(stem: &str) -> Vec<Constants> {
    let whole = Flags::all();
    let split = |splits: &&u32| **splits > 1;
    let all: Vec<Constants> = if stem == REDUCE.name {
        let splits = SPLITS.iter().filter(split);
        splits.flat_map(|s| whole.iter().map(|f| f.for_reduce(*s))).collect()
    } else {
        let partial = Flags::partial();
        let members = VARIANTS.iter().filter(|v| v.kernel.name == stem);
        members
            .flat_map(|v| [false, true].map(|pairs| (v, pairs)))
            .flat_map(|(v, pairs)| {
                let splits = SPLITS.iter().filter(split).filter(|_| v.splits());
                let once = whole.iter().map(|f| v.constants(f, 1, pairs));
                let parts = splits.flat_map(|s| partial.iter().map(move |f| v.constants(f, *s, pairs)));
                once.chain(parts).collect::<Vec<_>>()
            })
            .collect()
    };
    // matmul_reduce has none of the transpositions.
    all.into_iter().fold(Vec::new(), |mut distinct, constants| {
        if !distinct.contains(&constants) {
            distinct.push(constants);
        }
        distinct
    })
}

/// A variant and in how many parts it takes K.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The variant.
    pub variant: &'static Variant,
    /// One of [`SPLITS`].
    pub splits: u32,
}

/// How far a member walks K in one part. lavapipe ends the loops of an invocation after 65,535 rounds, in
/// silence, and counts those of all its loops together; which of them it unrolls is its own affair. A
/// member that is gone, a tile of 128x128, was seen to stop at 65,400; the tests hold each to this.
const REACH: usize = 60_000;

impl Choice {
    /// Whether sums of length `k` come to their end on every driver.
    pub fn reaches(&self, k: usize) -> bool {
        k <= self.reach()
    }

    /// The longest sums that it can make.
    pub fn reach(&self) -> usize {
        REACH * self.splits as usize
    }

    /// `subgroup8-32x64/4`; the part after the slash only where K is split.
    pub fn text(&self) -> String {
        match self.splits {
            1 => self.variant.name.to_owned(),
            n => format!("{}/{n}", self.variant.name),
        }
    }

    /// The choice of that text, where this device can run it.
    pub fn parse(text: &str, gpu: &Gpu) -> Option<Self> {
        let (name, splits) = text.split_once('/').unwrap_or((text, "1"));
        let variant = named(name).filter(|v| v.runs_on(gpu))?;
        let splits = splits.parse().ok().filter(|s| SPLITS.contains(s) && (*s == 1 || variant.splits()))?;
        Some(Self { variant, splits })
    }

    /// Every choice that this device can run.
    pub fn all(gpu: &Gpu) -> Vec<Self> {
        let runnable = VARIANTS.iter().filter(|v| v.runs_on(gpu));
        runnable
            .flat_map(|variant| {
                let splits = SPLITS.iter().filter(|s| **s == 1 || variant.splits());
                splits.map(move |splits| Self { variant, splits: *splits })
            })
            .collect()
    }
}

/// A product as the profile asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Which product.
    pub form: Form,
    /// Replicas.
    pub replicas: usize,
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
}

impl Question {
    /// `matmul forward r1 m128 n800 k784`: the key in a profile.
    pub fn key(&self) -> String {
        let Self { form, replicas, m, n, k } = self;
        format!("matmul {} r{replicas} m{m} n{n} k{k}", form.name())
    }

    /// What the profile says, or else the built-in choice for this kind of device, or else the first
    /// variant that was not found wrong on it.
    pub fn answer(&self, gpu: &Gpu) -> Choice {
        let recorded = gpu.profile.answers.get(&self.key()).and_then(|text| Choice::parse(text, gpu));
        let built_in = self.built_in(gpu);
        // The built-in member in other parts: where K is too long for one.
        let parts = |variant| SPLITS.map(|splits| Choice { variant, splits });
        let others = Choice::all(gpu);
        let chosen = recorded.into_iter().chain([built_in]);
        let mut in_order = chosen.chain(parts(built_in.variant)).chain(others);
        in_order.find(|c| c.reaches(self.k) && !gpu.avoids(&c.text())).unwrap_or(built_in)
    }

    /// The default: a pure function of the device class and the shape, as measured (docs/performance.md).
    fn built_in(&self, gpu: &Gpu) -> Choice {
        let (name, splits) =
            if gpu.report.kind == "software" { (self.on_software(gpu), 1) } else { self.on_gpu() };
        let fallback = || &VARIANTS[1]; // vec4: needs nothing of a device
        Choice { variant: named(name).filter(|v| v.runs_on(gpu)).unwrap_or_else(fallback), splits }
    }

    /// For GPUs, as measured on an H200: a product of few tiles waits for memory and not for its sums, so the fewer
    /// tiles, the smaller they are and the more slices share their k.
    ///
    /// Slices and parts of K decide in which order a sum is made. So the replicas have no say, for a student of a
    /// sweep has the bits that it has alone; nor, going forward, have the rows, for a teacher's logits are the same
    /// in batches of any size: 128 stand for all.
    fn on_gpu(&self) -> (&'static str, u32) {
        let Self { form, m, n, k, .. } = *self;
        let outputs = n * if form == Form::Forward { 128 } else { m };
        match outputs {
            0..=8_192 if k >= 512 => ("tile4-16x16", 4),
            0..=32_768 => ("tile4-16x16", 1),
            1_048_576.. => ("tile-64x64", 1),
            _ if k <= 256 => ("tile2-32x32", 1),
            _ => ("tile4-32x32", 1),
        }
    }

    /// For drivers on the CPU. All that stands here adds in ascending k, so the bits do not depend on the choice.
    fn on_software(&self, gpu: &Gpu) -> &'static str {
        let Self { m, n, .. } = *self;
        match gpu.report.subgroup {
            // A driver that keeps arrays in memory: SwiftShader.
            _ if !gpu.is_lavapipe() => "vec4-32x32",
            [4, 4] if n <= 16 => "subgroup4-8x16",
            [4, 4] => "subgroup4-32x32",
            [8, 8] if m <= 16 && n > 32 => "subgroup8-16x64",
            [8, 8] if n <= 16 => "subgroup8-32x16",
            [8, 8] if n <= 32 => "subgroup8-32x32",
            [8, 8] => "subgroup8-32x64",
            [16, 16] => self.least_work(&[
                ("subgroup16-32x64", 100),
                ("subgroup16-48x64", 95),
                ("subgroup16-64x48", 96),
                ("subgroup16-16x64", 115),
                ("subgroup16-64x16", 120),
            ]),
            _ => "vec4-32x32",
        }
    }

    /// The variant whose tiles take least, by what an element of a full one takes, in hundredths of the first's: at the
    /// edges of C they make more elements than it has.
    fn least_work(&self, variants: &[(&'static str, usize)]) -> &'static str {
        let work = |(name, each): &&(&'static str, usize)| {
            let [rows, cols] = named(name).expect("a variant").tile.map(|side| side as usize);
            self.m.next_multiple_of(rows) * self.n.next_multiple_of(cols) * each
        };
        variants.iter().min_by_key(work).expect("some").0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::AdapterChoice;

    #[test]
    fn on_a_gpu_the_order_of_a_sum_depends_on_what_it_may() {
        let mut gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
        gpu.report.kind = "discrete".into();
        let sizes = [1, 10, 64, 128, 200, 800, 1200, 4096, 10_000];
        let mut seen = std::collections::BTreeSet::new();
        for form in Form::ALL {
            for (n, k) in sizes.iter().flat_map(|n| sizes.map(|k| (*n, k))) {
                let answer = |replicas, m| Question { form, replicas, m, n, k }.answer(&gpu);
                for m in sizes {
                    let alone = answer(1, m);
                    assert!(alone.variant.kernel.name == TILE.name && alone.reaches(k));
                    let beside = answer(16, if form == Form::Forward { 7 } else { m });
                    assert_eq!(alone.text(), beside.text(), "{form:?} {m} x {n} x {k}");
                    seen.insert(alone.text());
                }
            }
        }
        assert_eq!(seen.len(), 5, "{seen:?}");
    }
}
