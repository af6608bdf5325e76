//! Every kernel and variant on the device, held to the f64 reference.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels;
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
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), cases.len(), failed.join("\n"));
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

#[test]
fn fixed_sizes_hold_to_the_reference_and_repeat_to_the_bit() {
    let (gpu, checked) = (open(false), open(true));
    let cases = cases::thorough();
    let first = check_all(&gpu, &cases);
    let digests = |gpu| cases.iter().map(|case| check(gpu, case).digest).collect::<Vec<_>>();
    let (again, checked) = (digests(&gpu), digests(&checked));
    for (i, v) in first.iter().enumerate() {
        assert_eq!(v.digest, again[i], "a second run differs: {v}");
        assert_eq!(v.digest, checked[i], "checked shaders differ: {v}");
    }
}

#[test]
fn every_kernel_and_every_combination_of_constants_is_among_the_cases() {
    let seen: BTreeSet<_> = cases::thorough().iter().map(|c| (c.kernel(), c.variant())).collect();
    let short: BTreeSet<_> = cases::short().iter().map(|c| (c.kernel(), c.variant())).collect();
    assert_eq!(seen, short, "doctor sees every variant too");
    let of = |kernel: &str| seen.iter().filter(|(k, _)| *k == kernel).count();
    let variants = |name: &str| {
        let kernel = kernels::all().into_iter().find(|k| k.name.starts_with(name)).expect(name);
        (kernel.variants)().len()
    };
    for name in ["gather", "head", "metrics", "sgd", "adam"] {
        assert_eq!(of(name), variants(name), "{name}");
    }
    assert_eq!(matmul::Ends::all().len(), variants("matmul_plain"));
    assert_eq!(of("matmul"), matmul::MEMBERS.len() * variants("matmul_plain"));
    let checked = 5 + matmul::MEMBERS.len();
    assert_eq!(kernels::all().len(), checked, "a kernel that no case runs");
}
