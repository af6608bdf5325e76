//! A kernel's dispatch written out for the page, and what must come of it.

use limbeck::gpu::pipeline::{Access, reflect};
use limbeck::reference::{Bounded, Worst, worst};
use limbeck::rng;
use serde_json::{Value, json};

use crate::common::Variant;

/// What an output holds before: a NaN of our own, which nothing takes for a result.
const POISON: u32 = 0x7fc0_dead;

/// One dispatch with its inputs, and the expected values of its outputs.
pub(crate) struct Dispatch<'v> {
    pub(crate) variant: &'v Variant,
    pub(crate) grid: [u32; 3],
    /// The members of `params` by name. Filled in by reflection, so the host's own `Params` are not
    /// believed here.
    pub(crate) params: Vec<(&'static str, u32)>,
    /// Everything else by the binding's name.
    pub(crate) buffers: Vec<(&'static str, Vec<u32>)>,
    pub(crate) expected: Vec<Expected>,
}

/// Rows of an output, and the reference's value of them.
pub(crate) struct Expected {
    pub(crate) binding: &'static str,
    /// The first row's first element, and from there the elements from a row to the next.
    pub(crate) offset: usize,
    pub(crate) stride: usize,
    pub(crate) value: Bounded,
    /// See [`Bounded`].
    pub(crate) n: usize,
}

impl Dispatch<'_> {
    /// For the page.
    pub(crate) fn question(&self) -> Value {
        let reflection = reflect(&self.variant.source).expect("naga takes our kernels");
        let buffers = reflection.bindings.iter().map(|binding| {
            let bits = match binding.name.as_str() {
                "params" => {
                    binding.members.iter().map(|(member, ..)| *self.find(&self.params, member)).collect()
                }
                name => self.find(&self.buffers, name).clone(),
            };
            let access = match binding.access {
                Access::Uniform => "uniform",
                // What the text says: only lavapipe is handed an image instead.
                Access::Read | Access::Image => "read",
                Access::ReadWrite => "read_write",
            };
            json!({ "binding": binding.index, "access": access, "bits": padded(bits) })
        });
        json!({
            "source": self.variant.for_browsers(),
            "grid": self.grid,
            "buffers": buffers.collect::<Vec<_>>(),
        })
    }

    fn find<'a, T>(&self, all: &'a [(&'static str, T)], name: &str) -> &'a T {
        let found = all.iter().find(|(n, _)| *n == name);
        &found.unwrap_or_else(|| panic!("{}: this test has nothing for `{name}`", self.variant.name())).1
    }

    /// The worst element of each output in the page's answer.
    pub(crate) fn judge(&self, answer: &Value) -> Vec<(&'static str, Worst)> {
        let reflection = reflect(&self.variant.source).expect("naga takes our kernels");
        let output = |expected: &Expected| {
            let binding = reflection.bindings.iter().find(|b| b.name == expected.binding);
            let index = binding.expect("an output of the kernel").index.to_string();
            let bits = answer["outputs"][index].as_array().expect("the page answers with arrays");
            let rows = (0..expected.value.value.rows).flat_map(|r| {
                let at = expected.offset + r * expected.stride;
                &bits[at..at + expected.value.value.cols]
            });
            let device: Vec<f32> =
                rows.map(|b| f32::from_bits(b.as_u64().expect("32 bits") as u32)).collect();
            (expected.binding, worst(&device, &expected.value, expected.n))
        };
        self.expected.iter().map(output).collect()
    }
}

/// The value of a constant in the text, whether the host filled it in or not.
pub(crate) fn constant<'v>(variant: &'v Variant, name: &str) -> Option<&'v str> {
    let start = format!("const {name}:");
    let (_, value) = variant.source.lines().find(|line| line.starts_with(&start))?.split_once('=')?;
    Some(value.trim().trim_end_matches(';').trim_end_matches('u'))
}

/// Uniforms come in units of 16 bytes.
fn padded(mut bits: Vec<u32>) -> Vec<u32> {
    bits.resize(bits.len().next_multiple_of(4), 0);
    bits
}

/// An output before it is written.
pub(crate) fn poisoned(len: usize) -> Vec<u32> {
    vec![POISON; len]
}

/// Seeded numbers, the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// `n` numbers in [-size, size).
    pub(crate) fn values(&mut self, n: usize, size: f32) -> Vec<f32> {
        self.0 += 1;
        (0..n as u64).map(|i| size * (2.0 * rng::uniform(self.0, 0, i) - 1.0)).collect()
    }

    /// `n` numbers below `end`.
    pub(crate) fn below(&mut self, n: usize, end: usize) -> Vec<u32> {
        self.0 += 1;
        (0..n as u64).map(|i| (rng::uniform(self.0, 0, i) * end as f32) as u32).collect()
    }
}

/// `rows` of `cols` values each, every row padded with zeros to `stride`: the layout of every tensor.
pub(crate) fn rows(values: &[f32], cols: usize, stride: usize) -> Vec<u32> {
    let padded = |row: &[f32]| {
        let mut bits: Vec<u32> = row.iter().map(|x| x.to_bits()).collect();
        bits.resize(stride, 0);
        bits
    };
    values.chunks_exact(cols).flat_map(padded).collect()
}
