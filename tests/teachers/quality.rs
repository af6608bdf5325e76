//! What `eval` and `compare` say, against the same numbers worked out from the logits that `predict` writes.

use std::fs;

use crate::bench::{Bench, binary, fails, json};

/// Probabilities `[row][class]` of the 40 test rows, whose label is row mod 3.
fn probabilities(bench: &Bench, model: &str) -> Vec<Vec<f64>> {
    let (data, out) = (bench.text("data"), bench.text("z.npy"));
    let args = ["predict", "--data", &data, "--model", model, "--out", &out, "--force"];
    assert!(binary().args(args).output().expect("it runs").status.success());
    let bytes = fs::read(&out).expect("logits");
    let z: Vec<f64> = bytes[128..]
        .chunks_exact(4)
        .map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("four bytes"))).exp())
        .collect();
    z.chunks_exact(3).map(|row| row.iter().map(|e| e / row.iter().sum::<f64>()).collect()).collect()
}

fn best(row: &[f64]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn close(found: &serde_json::Value, wanted: f64) {
    let found = found.as_f64().expect("a number");
    assert!((found - wanted).abs() < 1e-6 * wanted.abs().max(1.0), "{found} for {wanted}");
}

#[test]
fn eval_and_compare_say_what_the_logits_do() {
    let bench = Bench::new();
    let good = bench.teacher("good", &["--epochs", "3"]);
    let bad = bench.teacher("bad", &["--epochs", "1", "--seed", "4"]);
    let (p, q) = (probabilities(&bench, &good), probabilities(&bench, &bad));
    let data = bench.text("data");
    let seen =
        json(&["eval", "--data", &data, "--model", &bad, "--teacher", &good, "--baseline", &good, "--json"]);

    let n = q.len() as f64;
    let mean = |of: &dyn Fn(usize) -> f64| (0..q.len()).map(of).sum::<f64>() / n;
    let right = |rows: &[Vec<f64>], r: usize| best(&rows[r]) == r % 3;
    let errors = (0..q.len()).filter(|r| !right(&q, *r)).count();
    assert!(errors > 0 && errors < 40, "{errors} errors show little");
    let quality = &seen["quality"];
    assert_eq!((quality["rows"].as_u64(), quality["errors"].as_u64()), (Some(40), Some(errors as u64)));
    assert_eq!(seen["evaluation"]["errors"], quality["errors"]);
    close(&quality["nll"], mean(&|r| -q[r][r % 3].ln()));
    let square = |r: usize, c: usize| (q[r][c] - if c == r % 3 { 1.0 } else { 0.0 }).powi(2);
    close(&quality["brier"], mean(&|r| (0..3).map(|c| square(r, c)).sum()));
    let mut bins = vec![(0.0, 0.0); 15];
    for (r, row) in q.iter().enumerate() {
        let confidence = row[best(row)];
        let bin = &mut bins[(confidence * 15.0).ceil() as usize - 1];
        *bin = (bin.0 + confidence, bin.1 + f64::from(u8::from(right(&q, r))));
    }
    close(&quality["ece"], bins.iter().map(|(c, hits)| (c - hits).abs()).sum::<f64>() / n);
    let mut confusion = [[0; 3]; 3];
    q.iter().enumerate().for_each(|(r, row)| confusion[r % 3][best(row)] += 1);
    assert_eq!(quality["confusion"], serde_json::json!(confusion));
    for (c, class) in quality["classes"].as_array().expect("classes").iter().enumerate() {
        let rows: i32 = confusion[c].iter().sum();
        close(&class["recall"], f64::from(confusion[c][c]) / f64::from(rows));
        assert_eq!(class["name"], c.to_string());
    }

    // The teacher is the reference: what it has right and the model wrong is lost.
    let count = |a: bool, b: bool| (0..q.len()).filter(|r| (right(&q, *r), right(&p, *r)) == (a, b)).count();
    let teacher = &seen["teacher"];
    assert_eq!(seen["baseline"], *teacher, "the same network");
    for (name, a, b) in [
        ("both_right", true, true),
        ("negative_flips", false, true),
        ("positive_flips", true, false),
        ("both_wrong", false, false),
    ] {
        assert_eq!(teacher[name].as_u64(), Some(count(a, b) as u64), "{name}");
    }
    assert!(count(false, true) > 0, "no flip shows little");
    let kl = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * (a / b).ln()).sum::<f64>();
    close(&teacher["kl_reference_model"], mean(&|r| kl(&p[r], &q[r])));
    close(&teacher["kl_model_reference"], mean(&|r| kl(&q[r], &p[r])));
    close(&teacher["agreement"], mean(&|r| f64::from(u8::from(best(&p[r]) == best(&q[r])))));
    assert_eq!(teacher["agreement"], seen["evaluation"]["agreement"]);

    // A run's folder is as good as its file; turned round, the flips are, and the p-value stays.
    let (a, b) = (bench.text("good"), bench.text("bad"));
    let one = json(&["compare", &a, &b, "--data", &data, "--json"]);
    let other = json(&["compare", &b, &a, "--data", &data, "--json"]);
    assert_eq!(one["only_a_right"], teacher["negative_flips"]);
    assert_eq!(
        (&one["only_a_right"], &one["only_b_right"]),
        (&other["only_b_right"], &other["only_a_right"])
    );
    assert_eq!((&one["mcnemar_p"], &one["kl_a_b"]), (&other["mcnemar_p"], &other["kl_b_a"]));
    assert_eq!(one["b"]["errors"], quality["errors"]);
    let (few, many) = (count(true, false).min(count(false, true)), count(true, false) + count(false, true));
    let choose = |k: usize| (0..k).fold(1.0, |c, i| c * (many - i) as f64 / (i + 1) as f64);
    close(&one["mcnemar_p"], (2.0 * (0..=few).map(choose).sum::<f64>() / 2f64.powi(many as i32)).min(1.0));

    let text = binary()
        .args(["eval", "--data", &data, "--model", &bad, "--teacher", &good])
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for words in ["ECE", "precision", "Beside the teacher", "(negative flips)", "McNemar"] {
        assert!(text.contains(words), "`{words}` is not in: {text}");
    }
    fails(&["compare", &a, "--data", &data], 2, &["<B>"]);
    fails(&["compare", &a, &bench.text("none"), "--data", &data], 4, &["none"]);
}

/// Several seeds: each student is the one that its seed gives whatever its neighbours, is evaluated as
/// `eval` does, and the statistics are those of its errors.
#[test]
fn seeds_make_pairs() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let run = |out: &str, seed: &str, more: &[&str]| {
        let fixed = ["--teacher", &teacher, "--lr", "0.02", "--seed", seed];
        bench.distil(out, &[&fixed, more].concat())
    };
    let report = run("three", "5", &["--seeds", "3", "--labels-per-class", "2"]);
    let file = fs::read(bench.path("three/seeds.json")).expect("seeds.json");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&file).expect("JSON"), report);
    assert_eq!(report["seeds"], serde_json::json!([5, 6, 7]));
    let data = bench.text("data");
    let errors = |kind: &str, seed: i32| {
        let model = bench.text(&format!("three/{kind}-{seed}"));
        let seen = json(&["eval", "--data", &data, "--model", &model, "--json"]);
        seen["quality"]["errors"].as_f64().expect("errors")
    };
    let [distilled, scratch] = ["seed", "scratch"].map(|kind| [5, 6, 7].map(|seed| errors(kind, seed)));
    for (arm, found) in [("distilled", distilled), ("scratch", scratch)] {
        let by_seed: Vec<f64> =
            serde_json::from_value(report[arm]["errors_by_seed"].clone()).expect("numbers");
        assert_eq!(by_seed, found, "{arm}");
        close(&report[arm]["errors"]["mean"], found.iter().sum::<f64>() / 3.0);
        assert!(report[arm]["agreement"]["mean"].as_f64() > Some(0.3), "{report}");
    }
    let differences: Vec<f64> = distilled.iter().zip(scratch).map(|(a, b)| a - b).collect();
    let mean = differences.iter().sum::<f64>() / 3.0;
    close(&report["errors"]["difference"]["mean"], mean);
    let deviation = (differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
    assert!(deviation > 0.0, "the same difference three times shows little");
    let t = mean / (deviation / 3f64.sqrt());
    close(&report["errors"]["p"], 1.0 - t.abs() / (2.0 + t * t).sqrt());

    run("all", "5", &["--seeds", "3"]);
    run("two", "6", &["--seeds", "2"]);
    let read = |file: &str| fs::read(bench.path(file)).expect("a model");
    for kind in ["seed-6/student", "seed-7/student", "scratch-6/model", "scratch-7/model"] {
        let [a, b] = ["all", "two"].map(|run| read(&format!("{run}/{kind}.safetensors")));
        assert!(a == b, "{kind}: another neighbour, other bits");
    }
    assert_ne!(read("two/seed-6/student.safetensors"), read("two/seed-7/student.safetensors"));
    let out = bench.text("three");
    let again =
        ["distill", "--data", &data, "--teacher", &teacher, "--layers", "7,3", "--seeds", "2", "--out", &out];
    fails(&again, 2, &["seeds.json exists", "--force"]);
    fails(&[&again[..7], &["--seeds", "1", "--out", &out]].concat(), 2, &["--seeds"]);
}
