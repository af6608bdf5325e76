//! A second compiler and a second runtime for the same shaders: Tint and Dawn, in Chromium.
//!
//! Every variant of every kernel is compiled there. Tint knows, as naga does not, whether a barrier
//! stands in uniform control flow. The matmul family and the loss head also run there, on fixed small
//! inputs, and are held to the f64 reference with the same bounds as on any device.
//!
//! Not a part of `cargo test`, since it needs a browser: `make test-chromium`.

mod browser;
#[path = "../common/mod.rs"]
mod common;
mod dispatch;
mod head;
mod matmul;

use std::collections::BTreeMap;

use common::{EXPECTED, NON_UNIFORM_BARRIER, Variant, count, variants};
use dispatch::Dispatch;
use serde_json::{Value, json};

/// Lanes in a subgroup of SwiftShader, which is what Chromium runs on here.
const SUBGROUP: usize = 4;

/// How many variants of each kernel run, by hand for the same reason as in `common`.
const RUN: &[(&str, usize)] = &[
    ("matmul_plain", 19),
    ("matmul_vec4", 23),
    ("matmul_tile", 92),
    ("matmul_subgroup", 46),
    ("matmul_reduce", 15),
    ("head", 38),
];

fn dispatch(variant: &Variant) -> Option<Dispatch<'_>> {
    match variant.kernel {
        "head" => Some(head::dispatch(variant)),
        name if name.starts_with("matmul_") => matmul::dispatch(variant),
        _ => None,
    }
}

fn list<'a>(answer: &'a Value, of: &str) -> &'a Vec<Value> {
    answer[of].as_array().unwrap_or_else(|| panic!("the page's answer has no list of {of}"))
}

#[test]
fn tint_and_dawn_agree_with_naga_and_the_reference() {
    let variants = variants();
    assert_eq!(count(&variants), EXPECTED, "if the change is meant, say so in EXPECTED");
    let mut modules: Vec<String> = variants.iter().map(Variant::for_browsers).collect();
    modules.push(NON_UNIFORM_BARRIER.to_owned());
    let dispatches: Vec<Dispatch<'_>> = variants.iter().filter_map(dispatch).collect();
    let questions: Vec<Value> = dispatches.iter().map(Dispatch::question).collect();
    let answer = browser::ask(&json!({ "modules": modules, "dispatches": questions }));
    println!("adapter: {}", answer["adapter"]);

    let mut messages: Vec<_> =
        list(&answer, "modules").iter().map(|m| m.as_array().cloned().unwrap_or_default()).collect();
    assert_eq!(messages.len(), variants.len() + 1, "modules that came back");
    let planted = messages.pop().unwrap_or_default();
    let uniform = |m: &Value| m.as_str().is_some_and(|m| m.contains("uniform control flow"));
    assert!(planted.iter().any(uniform), "Tint took a barrier in non-uniform control flow: {planted:?}");
    for (variant, messages) in variants.iter().zip(&messages) {
        assert!(messages.is_empty(), "{}: {messages:?}", variant.name());
    }
    println!("compiled: {} variants of {} kernels", variants.len(), EXPECTED.len());

    let answers = list(&answer, "dispatches");
    assert_eq!(answers.len(), dispatches.len(), "dispatches that came back");
    let mut ratios: BTreeMap<&str, f64> = BTreeMap::new();
    for (dispatch, answer) in dispatches.iter().zip(answers) {
        let name = dispatch.variant.name();
        assert_eq!(answer["messages"], json!([]), "{name}");
        for (output, worst) in dispatch.judge(answer) {
            assert!(worst.passes(), "{name}: {output} leaves the reference: {worst:?}");
            let ratio = ratios.entry(dispatch.variant.kernel).or_default();
            *ratio = ratio.max(worst.ratio);
        }
    }
    let run = count(dispatches.iter().map(|d| d.variant));
    println!("run: {run:?}, at worst {ratios:.3?} of the bound");
    assert_eq!(run, RUN, "kernels and variants that ran; if the change is meant, say so in RUN");
    let lanes = ["subgroupMinSize", "subgroupMaxSize"].map(|of| answer["adapter"][of].as_u64());
    assert_eq!(lanes, [Some(SUBGROUP as u64); 2], "SwiftShader's subgroups");
}
