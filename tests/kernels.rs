//! Every kernel and variant on the device, held to the f64 reference.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels::feature;
use limbeck::kernels::head::Soft;
use limbeck::kernels::matmul::family::SPLITS;
use limbeck::kernels::matmul::{Choice, VARIANTS};
use limbeck::kernels::{self};
use limbeck::verify::{Case, Verdict, cases, matmul};

fn open(checked: bool) -> Gpu {
    Gpu::open(&AdapterChoice { checked, ..AdapterChoice::default() }).expect("a device")
}

fn check(gpu: &Gpu, case: &Case) -> Verdict {
    case.check(gpu).unwrap_or_else(|e| panic!("{case:?}: {e}"))
}

/// Checks every case and prints the worst ratio to the bound of each kernel and variant.
fn check_all(gpu: &Gpu, cases: &[Case]) -> Vec<Verdict> {
    let verdicts: Vec<Verdict> = cases.iter().map(|case| check(gpu, case)).collect();
    let failed: Vec<String> = verdicts.iter().filter(|v| !v.passes()).map(Verdict::to_string).collect();
    assert!(
        failed.is_empty(),
        "{} of {} cases:\n{}",
        failed.len(),
        cases.len(),
        failed[..failed.len().min(20)].join("\n")
    );
    let mut worst: BTreeMap<(&str, &str), (usize, f64)> = BTreeMap::new();
    for v in &verdicts {
        let entry = worst.entry((v.kernel, &v.variant)).or_default();
        *entry = (entry.0 + 1, entry.1.max(v.worst.ratio));
    }
    for ((kernel, variant), (count, ratio)) in worst {
        println!("{kernel:8} {variant:40} {count:4} cases, worst {ratio:.4} of the bound");
    }
    verdicts
}

/// In four tests, for two cores: what takes longest is the driver's compiler.
#[test]
fn products_of_the_smallest_subgroup_tiles_hold_to_the_reference_and_repeat_to_the_bit() {
    hold(|case| matches!(case, Case::Matmul(c) if c.choice.variant.lanes > 0 && is_smallest(c.choice)));
}

#[test]
fn products_of_other_subgroup_tiles_hold_to_the_reference_and_repeat_to_the_bit() {
    hold(|case| matches!(case, Case::Matmul(c) if c.choice.variant.lanes > 0 && !is_smallest(c.choice)));
}

#[test]
fn other_products_hold_to_the_reference_and_repeat_to_the_bit() {
    hold(|case| matches!(case, Case::Matmul(c) if c.choice.variant.lanes == 0));
}

#[test]
fn other_kernels_hold_to_the_reference_and_repeat_to_the_bit() {
    hold(|case| !matches!(case, Case::Matmul(_)));
}

fn is_smallest(choice: Choice) -> bool {
    cases::SMALLEST.contains(&choice.variant.name)
}

fn hold(part: impl Fn(&Case) -> bool) {
    let (gpu, checked) = (open(false), open(true));
    let cases: Vec<Case> = cases::thorough().into_iter().filter(|c| part(c) && c.runs_on(&gpu)).collect();
    let first = check_all(&gpu, &cases);
    // A part of them, for time; 3 and 5 do not go in step with the number of epilogues.
    for (i, (case, v)) in cases.iter().zip(&first).enumerate() {
        // With run-time checks no driver unrolls a loop, and lavapipe ends the longest ones early.
        let long = match case {
            Case::Matmul(c) => c.k > 10_000,
            Case::Head(c) => c.k > 10_000 && c.form.lanes == 1,
            _ => false,
        };
        let seen_checked = match case {
            // Compiled once more for this: one member with every epilogue, the others with what their loops do.
            Case::Matmul(c) => {
                c.choice.variant.name == "vec4-32x32" || is_smallest(c.choice) && c.ends.is_bare()
            }
            _ => true,
        };
        if i % 3 == 0 && !long && seen_checked {
            let c = check(&checked, case);
            assert!(c.passes(), "checked shaders: {c}");
            // A GPU's compiler fuses a product and a sum where it likes, and the checks change what it sees.
            let same = c.digest == v.digest || gpu.report.kind != "software";
            assert!(same, "checked shaders differ: {v}");
        }
        if i % 5 == 0 {
            assert_eq!(v.digest, check(&gpu, case).digest, "a second run differs: {v}");
        }
    }
}

#[test]
fn every_kernel_and_every_combination_of_constants_is_among_the_cases() {
    let names = |cases: Vec<Case>, of: fn(&Case) -> String| -> BTreeSet<_> {
        cases.iter().map(|c| (c.kernel(), of(c))).collect()
    };
    let seen = names(cases::thorough(), Case::variant);
    // Doctor sees every variant too; of the many soft terms each in one of their forms.
    let for_doctor = |case: &Case| match case {
        Case::Head(c) if c.soft != Soft::FORWARD_KL => c.soft.text(),
        _ => case.variant(),
    };
    assert_eq!(names(cases::thorough(), for_doctor), names(cases::short(), for_doctor));
    let of = |kernel: &str| seen.iter().filter(|(k, _)| *k == kernel).count();
    for name in ["gather", "dropout", "head", "metrics", "sgd", "adam", "max_norm"] {
        let kernel = kernels::all().into_iter().find(|k| k.name == name).expect(name);
        assert_eq!(of(name), (kernel.variants)().len(), "{name}");
    }
    // Both of norm's dispatches are in every case.
    assert_eq!(2 * of("norm"), (kernels::norm::KERNEL.variants)().len());
    // Three members of an ensemble are three variants: the first, one in the middle, the last.
    assert_eq!(3 * of("ensemble"), (kernels::ensemble::KERNEL.variants)().len());
    // Of the feature losses each is a kernel.
    assert_eq!(of("feature"), feature::KERNELS.len());
    assert_eq!(of("matmul"), matmul::choices().len());
    // Of the matmul family the smallest tile of each member has every epilogue, and with a split K every
    // one that it does itself; the other tiles have what their loops do and a run asks for; matmul_reduce has every
    // epilogue.
    let products: BTreeSet<(String, String)> = cases::thorough()
        .iter()
        .filter_map(|c| if let Case::Matmul(c) = c { Some((c.choice.text(), c.task())) } else { None })
        .collect();
    // The weight gradient of a run is bare.
    let (ends, bare, usual) = (19, 4, 2);
    assert_eq!(matmul::Ends::all().len(), ends);
    let (smallest, splits) = (cases::SMALLEST.len(), SPLITS.len() - 1);
    let others = VARIANTS.len() - smallest;
    let whole = smallest * ends + others * (bare + usual);
    // All of the smallest split but the plain one.
    let expected = whole + splits * ((smallest - 1) * bare + (ends - bare) + others);
    assert_eq!(products.len(), expected);
    // The yardsticks of bench compute nothing that a run uses.
    let yardsticks = 2;
    assert_eq!(kernels::all().len(), 11 + matmul_kernels() + yardsticks, "a kernel that no case runs");
}

/// Distinct shaders of the family.
fn matmul_kernels() -> usize {
    VARIANTS.iter().map(|v| v.kernel.name).chain(["matmul_reduce"]).collect::<BTreeSet<_>>().len()
}
