//! Doctor says that a right device is right and that a wrong kernel is wrong.

use limbeck::error::Error;
use limbeck::gpu::{AdapterChoice, Gpu, Kernel};
use limbeck::kernels::head::Soft;
use limbeck::kernels::matmul::Form;
use limbeck::kernels::matmul::family::{PLAIN, Question, REDUCE, SUBGROUP, TILE, VEC4, named};
use limbeck::kernels::{adam, dropout, gather, head, max_norm, metrics, sgd};
use limbeck::verify::doctor::{self, Examined, Health};
use limbeck::verify::{Case, cases};

fn open() -> Gpu {
    Gpu::open(&AdapterChoice::default()).expect("a device")
}

/// Whether a case is of another soft term than plain forward KL: those have faults of their own.
fn other_term(case: &Case) -> bool {
    matches!(case, Case::Head(c) if c.soft != Soft::FORWARD_KL)
}

/// Doctor's cases of `name` on a device on which `from` was replaced by `to` in one kernel's text.
fn examine_with(kernel: &'static Kernel, name: &str, from: &str, to: &str) -> Examined {
    let gpu = open();
    gpu.plant(kernel, |text| {
        assert!(text.contains(from), "{}: no `{from}` to plant a fault in", kernel.name);
        text.replace(from, to)
    });
    let cases: Vec<_> = cases::short()
        .into_iter()
        .filter(|c| c.kernel() == name && c.is_quick() && !other_term(c))
        // Of the matmul family the smallest tiles of what runs the kernel, for all have one text and these compile
        // soonest, and the baseline, which can stand in for it.
        .filter(|c| {
            c.member().is_none_or(|m| {
                m.splits == 1 && m.variant.name == PLAIN_OR_VEC4[usize::from(kernel.name == PLAIN.name)]
                    || cases::SMALLEST.contains(&m.variant.name) && choice_uses(&m.text(), kernel.name)
            })
        })
        .collect();
    doctor::examine(&[gpu], &cases)
}

/// Who stands in for a member, and for the baseline itself.
const PLAIN_OR_VEC4: [&str; 2] = ["plain", "vec4-32x32"];

#[test]
fn a_right_device_is_healthy_and_the_report_says_what_was_seen() {
    let mut seen = Vec::new();
    let report = doctor::run(&AdapterChoice::default(), |name| seen.push(name.to_owned())).expect("adapters");
    report.outcome().expect("a healthy device");
    assert!(report.healthy && !seen.is_empty());
    for examined in &report.adapters {
        let names: Vec<&str> = examined.kernels.iter().map(|k| &*k.kernel).collect();
        for name in ["adam", "gather", "head", "matmul", "metrics", "sgd"] {
            assert!(names.contains(&name), "{names:?}");
        }
        for v in examined.kernels.iter().flat_map(|k| &k.variants) {
            assert!(v.cases > 0 && v.worst_ratio > 0.0 && v.worst_ratio < 1.0 && v.deterministic, "{v:?}");
        }
        assert_ne!(examined.timestamps, Some(false));
    }
    let json = serde_json::to_value(&report).expect("a report is JSON");
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["adapters"][0]["kernels"][0]["verdict"], "pass");
    assert!(report.to_string().contains("all is well"), "{report}");
}

/// The small slips that a kernel's author makes, in the matmul family and then elsewhere: each must be seen by the kernel's
/// own check.
#[test]
fn planted_faults_in_products_are_seen() {
    see(&[
        (&PLAIN, "matmul", "i < params.k;", "i + 1u < params.k;"),
        (&PLAIN, "matmul", "row * params.a_stride + i", "row * params.a_stride + i + 1u"),
        (&PLAIN, "matmul", "bias[replica * params.bias_replica + col]", "bias[col]"),
        (&PLAIN, "matmul", "1.0 - s * s", "1.0 - s"),
        (&PLAIN, "matmul", "0.044715 * x", "0.0447 * x"),
        (&PLAIN, "matmul", "col >= params.c_stride", "col >= params.n"),
        (&VEC4, "matmul", "KEEP {", "KEEP && col + 4u < params.n {"),
        (&TILE, "matmul", "tile.k_end = min(tile.k_end,", "tile.k_end = max(tile.k_end,"),
        (&TILE, "matmul", "sums[i][v] += tiles[", "sums[i][v] = tiles["),
        (&TILE, "matmul", "if ROW_SUMS { row_sums[i] += x; }", ""),
        (&SUBGROUP, "matmul", "1.0 - t * t", "1.0 - t"),
        (&SUBGROUP, "matmul", "select(turn, turn ^ lane, EXCHANGE)", "select(turn ^ lane, turn, EXCHANGE)"),
        (&REDUCE, "matmul", "split < SPLITS", "split + 1u < SPLITS"),
        (&REDUCE, "matmul", "x += extra[at];", ""),
        (&VEC4, "matmul", "x += extra[at];", ""),
        (&PLAIN, "matmul", "row_sum += extra[at];", ""),
        (&PLAIN, "matmul", "if row >= params.m ||", "if row > params.m ||"),
    ]);
}

#[test]
fn planted_faults_in_other_kernels_make_doctor_fail() {
    see(&[
        (&head::KERNEL, "head", "now.soft_weight * t;", "now.soft_weight;"),
        (&head::KERNEL, "head", "var soft_loss = t * t *", "var soft_loss = t *"),
        (&head::KERNEL, "head", "x > top.xz", "x >= top.xz"),
        (&head::KERNEL, "head", "f32(max(now.rows, 1u))", "f32(params.batch)"),
        (&head::KERNEL, "head", "now.smoothing / f32(params.k)", "now.smoothing"),
        (&head::KERNEL, "head", "j < params.z_stride", "j < k"),
        (&head::KERNEL, "head", "j < params.z_stride", "j < params.z_stride + 4u"),
        (&head::KERNEL, "head", "block[g][i] - top.xz", "block[g][i] - top.xx"),
        (&head::KERNEL, "head", "select(0.0, all.x, labelled)", "all.x"),
        (&gather::KERNEL, "gather", "- params.chunk_start", ""),
        (&gather::KERNEL, "gather", "bytes >> 16u", "bytes >> 17u"),
        (&gather::KERNEL, "gather", "row >= now.rows", "row > now.rows"),
        (&gather::KERNEL, "gather", "upper(words.y, places)", "upper(words.x, places)"),
        (&gather::KERNEL, "gather", "any(whence >= size)", "whence.x >= size.x"),
        (&gather::KERNEL, "gather", "8u * (at % 4u)", "8u * (j % 4u)"),
        (&dropout::KERNEL, "dropout", "i < 10u", "i < 9u"),
        (&dropout::KERNEL, "dropout", "params.layer)", "0u)"),
        (&dropout::KERNEL, "dropout", "words >= ", "words <= "),
        (&dropout::KERNEL, "dropout", "kept += y[to]", "kept = y[to]"),
        (&dropout::KERNEL, "dropout", "slot.x * params.replicas + group.z", "slot.x * params.replicas"),
        (&metrics::KERNEL, "metrics", "l < LANES", "l < LANES - 1u"),
        (&metrics::KERNEL, "metrics", "[4u + j] = high[j]", "[4u + j] = low[j]"),
        (&max_norm::KERNEL, "max_norm", "reach = 32u", "reach = 16u"),
        (&max_norm::KERNEL, "max_norm", "params.limit / norm", "params.limit"),
        (&max_norm::KERNEL, "max_norm", ".y == 0.0", ".y > 0.0"),
        (&sgd::KERNEL, "sgd", "select(m[j], g[j] + now.momentum * m[j], NESTEROV)", "m[j]"),
        (&sgd::KERNEL, "sgd", "slot.x * params.replicas + group.z", "slot.x * params.replicas"),
        (&adam::KERNEL, "adam", "params.rest_2 * g[j] * g[j]", "params.rest_2 * g[j]"),
        (&adam::KERNEL, "adam", "+ params.epsilon)", ")"),
        (&adam::KERNEL, "adam", "w -= now.lr * params.weight_decay * w", "w -= params.weight_decay * w"),
    ]);
}

/// A kernel, doctor's name for it, and what is replaced in its text by what.
type Fault = (&'static Kernel, &'static str, &'static str, &'static str);

fn see(faults: &[Fault]) {
    for &(kernel, name, from, to) in faults {
        let examined = examine_with(kernel, name, from, to);
        assert_eq!(examined.kernels.len(), 1);
        let what = format!("{}: `{from}` -> `{to}`", kernel.name);
        // Another member of the matmul family does the work of a wrong one.
        let family = name == "matmul";
        let expected = if family { Health::Avoid } else { Health::Fail };
        assert_eq!(examined.kernels[0].verdict, expected, "{what}");
        assert_eq!(examined.healthy(), family, "{what}");
        let text = examined.to_string();
        assert!(text.contains(if family { "avoid" } else { "WRONG" }), "{text}");
        let wrong = |name: &String| choice_uses(name, kernel.name);
        assert!(examined.avoid.iter().all(wrong), "{what}: blamed {:?}", examined.avoid);
        assert_eq!(examined.avoid.is_empty(), !family, "{what}");
    }
}

/// The slips of the soft terms: which term must show it.
#[test]
fn planted_faults_in_each_loss_make_doctor_fail() {
    let faults = [
        ("reverse-kl", "q * vec2<f32>(ratio, ratio - row.expectation)", "q * vec2<f32>(ratio, ratio)"),
        ("reverse-kl", "exp(l.x) * (l.x - against)", "exp(l.y) * (l.x - against)"),
        ("symmetric-kl", "(q - p) * ratio", "q * ratio"),
        ("jsd", "l + row.args.wz", "l + row.args.zw"),
        ("jsd", "q * (row.args.y * (below.x", "q * (row.args.x * (below.x"),
        ("dkd", "target_of.x - target_of.y", "target_of.y - target_of.x"),
        ("dkd", "(target_of.y - target_of.x) * q", "(target_of.y - target_of.x) * p"),
        ("dkd", "exp(row.log_rest.y) * (", "exp(row.log_rest.x) * ("),
        ("dkd", "LOSS == DKD && j != label", "LOSS == DKD"),
        ("clipped-kl", "l.x >= row.args.y", "l.y >= row.args.y"),
        ("clipped-kl", "q * row.expectation - unclipped", "q - unclipped"),
        (
            "virtual-teacher",
            "vec4<f32>(row.args.y), vec4<f32>(row.args.x)",
            "vec4<f32>(row.args.x), vec4<f32>(row.args.x)",
        ),
        ("virtual-teacher", "(labelled || !OF_LABELS)", "true"),
        ("sigmoid", "exp(high.x) - exp(high.y)", "exp(low.x) - exp(low.y)"),
        ("sigmoid", "log_sigmoid(x / row.t)", "log_sigmoid(x)"),
        ("mse", "2.0 * d", "d"),
        ("mse", "soft_weight = now.soft_weight;", ""),
        ("standardised forward-kl", "f32(params.k - 1u));\n", "f32(params.k));\n"),
        ("standardised forward-kl", "- spread * (x.x", "+ spread * (x.x"),
        ("standardised forward-kl", "vec2<f32>(), constant", "vec2<f32>(1.0), constant"),
    ];
    for (term, from, to) in faults {
        let gpu = open();
        gpu.plant(&head::KERNEL, |text| {
            assert!(text.contains(from), "no `{from}` to plant a fault in");
            text.replace(from, to)
        });
        let cases = cases::short()
            .into_iter()
            .filter(|c| matches!(c, Case::Head(h) if h.soft.text() == term) && c.is_quick());
        let examined = doctor::examine(&[gpu], &cases.collect::<Vec<_>>());
        assert_eq!(examined.kernels[0].verdict, Health::Fail, "{term}: `{from}` -> `{to}`");
    }
}

/// Whether the choice of that name runs the kernel.
fn choice_uses(choice: &str, kernel: &str) -> bool {
    let (name, splits) = choice.split_once('/').unwrap_or((choice, "1"));
    let member = named(name).expect("a variant").kernel.name;
    member == kernel || splits != "1" && kernel == "matmul_reduce"
}

#[test]
fn runs_avoid_a_wrong_member_and_end_where_none_is_right() {
    let gpu = open();
    assert!(doctor::screen(&gpu).expect("a right family").is_empty());
    let product = Question { form: Form::Forward, replicas: 1, m: 128, n: 800, k: 784 };
    let usual = product.answer(&gpu);
    gpu.plant(usual.variant.kernel, |text| text.replace("fn finish(", "fn finish_wrongly("));
    let avoided = doctor::screen(&gpu).expect("a right member");
    assert!(avoided.contains(&usual.text()), "{avoided:?}");
    let instead = product.answer(&gpu);
    assert_ne!(instead.variant.kernel.name, usual.variant.kernel.name);

    let gpu = open();
    for kernel in [&PLAIN, &VEC4, &TILE, &SUBGROUP, &REDUCE] {
        // Seen by every tile, whatever its epilogue: the wrong replica of A.
        gpu.plant(kernel, |text| text.replace("params.a_replica", "params.b_replica"));
    }
    let error = doctor::screen(&gpu).expect_err("no right member");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("matmul"), "{error}");
}

#[test]
fn one_wrong_kernel_is_blamed_alone() {
    let gpu = open();
    gpu.plant(&metrics::KERNEL, |text| text.replace("i += LANES", "i += LANES + 1u"));
    let examined = doctor::examine(&[gpu], &cases::short());
    for k in &examined.kernels {
        let expected = if k.kernel == "metrics" { Health::Fail } else { Health::Pass };
        assert_eq!(k.verdict, expected, "{}", k.kernel);
    }
}

#[test]
fn a_shader_that_does_not_build_is_a_failure_too() {
    let examined = examine_with(&sgd::KERNEL, "sgd", "fn main", "fn mian");
    let sgd = examined.kernels.iter().find(|k| k.kernel == "sgd").expect("sgd");
    assert_eq!(sgd.verdict, Health::Fail);
    assert!(sgd.variants[0].fault.as_deref().is_some_and(|f| f.contains("sgd")), "{sgd:?}");
}

#[test]
fn a_choice_that_matches_nothing_is_exit_3_and_a_lost_device_is_not_healthy() {
    let choice = AdapterChoice { adapter: Some("no such thing".to_owned()), ..AdapterChoice::default() };
    match doctor::run(&choice, |_| {}) {
        Err(error @ Error::NoAdapter { .. }) => assert_eq!(error.exit_code(), 3),
        other => panic!("{other:?}"),
    }
    let gpu = open();
    gpu.lose();
    let examined = doctor::examine(&[gpu], &cases::short());
    assert!(!examined.healthy() && examined.error.is_some());
}

#[test]
fn no_adapter_at_all_is_exit_3_with_a_report() {
    // A graphics interface that this system cannot have.
    let backend = if cfg!(target_os = "macos") { "dx12" } else { "metal" };
    let choice = AdapterChoice { backend: Some(backend.to_owned()), ..AdapterChoice::default() };
    let report = doctor::run(&choice, |_| {}).expect("a report");
    assert!(report.adapters.is_empty() && !report.healthy);
    let error = report.outcome().expect_err("no adapter");
    assert_eq!(error.exit_code(), 3);
    assert!(error.hint().is_some());
}
