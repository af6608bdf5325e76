//! `limbeck sweep`: the product of a grid, students side by side, and the best of them by validation.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json as value};

use crate::bench::{Bench, binary, fails, hash, json};

/// Students of a few steps; what the sweep prints as JSON.
fn sweep(bench: &Bench, out: &str, more: &[&str]) -> Value {
    let (data, out) = (bench.text("data"), bench.text(out));
    let mut args =
        vec!["sweep", "--data", &data, "--batch-size", "16", "--steps", "25", "--json", "--out", &out];
    args.extend(more);
    json(&args)
}

/// The hash of the student that `distill` makes of the same options.
fn alone(bench: &Bench, more: &[&str]) -> String {
    let (data, out) = (bench.text("data"), bench.text("alone"));
    let mut args = vec!["distill", "--data", &data, "--batch-size", "16", "--steps", "25"];
    args.extend(["--force", "--json", "--out", &out]);
    args.extend(more);
    hash(&json(&args))
}

/// The lines of sweep.csv by column.
fn csv(bench: &Bench, out: &str) -> Vec<BTreeMap<String, String>> {
    let text = fs::read_to_string(bench.path(out).join("sweep.csv")).expect("sweep.csv");
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    let heading = lines.next().expect("a heading");
    lines.map(|line| heading.iter().cloned().zip(line).collect()).collect()
}

/// Each student's hash, by its settings and seed.
fn hashes(bench: &Bench, out: &str, keys: &[&str]) -> BTreeMap<Vec<String>, String> {
    let line = |line: BTreeMap<String, String>| {
        (keys.iter().chain(&["seed"]).map(|key| line[*key].clone()).collect(), line["weights_sha256"].clone())
    };
    csv(bench, out).into_iter().map(line).collect()
}

/// Whatever its neighbours and however the sweep is cut, a student is the one that `distill` makes alone.
#[test]
fn a_swept_student_has_the_bits_of_distill_alone() {
    let bench = Bench::new();
    let (one, other) = (bench.teacher("one", &[]), bench.teacher("other", &["--seed", "1"]));
    // Two shapes of two seeds.
    let grid = ["--grid", "temperature=1,5", "--grid", "layers=7-5-3,7-4-4-3", "--seed", "3", "--seeds", "2"];
    let fixed = ["--teacher", &one, "--teacher", &other, "--hard-weight", "0.3", "--soft-weight", "0.7"];
    let whole = sweep(&bench, "whole", &[&fixed[..], &grid].concat());
    assert_eq!((&whole["runs"], whole["students"].as_array().map(Vec::len)), (&value!(2), Some(8)));
    let keys = ["temperature", "layers"];
    let found = hashes(&bench, "whole", &keys);
    for (place, swept) in &found {
        let [t, layers, seed] = place.as_slice() else { panic!("{place:?}") };
        let own = ["--temperature", t, "--layers", &layers.replace('-', ","), "--seed", seed];
        assert_eq!(*swept, alone(&bench, &[&fixed[..], &own].concat()), "{place:?}");
    }
    // One at a time; and through a window that holds one seed's order, but not those of four students.
    for (i, more) in [&["--at-once", "1"], &["--device-memory", "2047"]].into_iter().enumerate() {
        let cut = sweep(&bench, &format!("cut{i}"), &[&fixed[..], &grid, more].concat());
        assert_eq!(found, hashes(&bench, &format!("cut{i}"), &keys), "{more:?}");
        assert_eq!(cut["cells"], whole["cells"], "{more:?}");
    }

    // A teacher that has to run in the step; and two kinds of loss, one order for all.
    let hint = ["--teacher", &one, "--layers", "7,5,3", "--hint", "1:1:0.5", "--seed", "4"];
    let report =
        sweep(&bench, "hint", &[&hint[..], &["--grid", "clip=0,1e-3", "--grid", "lr=0.01,0.002"]].concat());
    assert_eq!(report["runs"], 2);
    for (place, swept) in hashes(&bench, "hint", &["clip", "lr"]) {
        let own = ["--clip", &place[0], "--lr", &place[1]];
        assert_eq!(swept, alone(&bench, &[&hint[..], &own].concat()), "{place:?}");
    }
}

fn numbers(lines: &[BTreeMap<String, String>], key: &str, of: &str) -> Vec<f64> {
    lines
        .iter()
        .filter(|line| line["temperature"] == of)
        .map(|line| line[key].parse().expect("a number"))
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn the_best_by_validation_is_told_and_kept() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    // Sharp and soft targets, few steps: told apart by validation.
    let args = ["--teacher", &teacher, "--layers", "7,5,3", "--alpha", "0", "--validation", "0.4"];
    let grid = ["--grid", "temperature=0.1,2,20", "--grid", "seed=3,1,2", "--lr", "0.01"];
    let report = sweep(&bench, "s", &[&args[..], &grid].concat());
    let file: Value =
        serde_json::from_str(&fs::read_to_string(bench.path("s/sweep.json")).expect("sweep.json"))
            .expect("JSON");
    assert_eq!(file, report);
    assert_eq!(bench.files("s"), ["best", "config.toml", "sweep.csv", "sweep.json"]);
    assert_eq!((&report["schema_version"], &report["seeds"]), (&value!(1), &value!([3, 1, 2])));
    assert_eq!((&report["validation_rows"], &report["test_rows"]), (&value!(60), &value!(40)));

    // The table of cells is that of the CSV's lines.
    let lines = csv(&bench, "s");
    assert_eq!(lines.len(), 9);
    let cells = report["cells"].as_array().expect("cells");
    let mut scores = Vec::new();
    for (cell, t) in cells.iter().zip(["0.1", "2", "20"]) {
        assert_eq!(cell["settings"], value!({ "temperature": t.parse::<f64>().expect("a number") }));
        for (part, name) in [("validation", "validation_"), ("test", "test_")] {
            for (measure, column) in [("errors", "errors"), ("nll", "nll"), ("agreement", "agreement")] {
                let wanted = mean(&numbers(&lines, &format!("{name}{column}"), t));
                let found = cell[part][measure]["mean"].as_f64().expect("a mean");
                assert!((found - wanted).abs() < 1e-12, "{part} {measure} at {t}: {found} {wanted}");
                assert!(cell[part][measure]["half_width"].as_f64().is_some());
            }
        }
        scores.push((
            mean(&numbers(&lines, "validation_errors", t)),
            mean(&numbers(&lines, "validation_nll", t)),
        ));
    }
    let best = (0..3).min_by(|a, b| scores[*a].partial_cmp(&scores[*b]).expect("finite")).expect("three");
    assert!(scores.iter().any(|s| *s != scores[best]), "nothing to choose: {scores:?}");
    assert_eq!(report["best"]["cell"], best);
    let seed = report["best"]["seed"].to_string();
    let own: Vec<_> = lines.iter().filter(|line| line["temperature"] == ["0.1", "2", "20"][best]).collect();
    let score = |line: &BTreeMap<String, String>| {
        ["validation_errors", "validation_nll"].map(|key| line[key].parse::<f64>().expect("a number"))
    };
    let chosen = own.iter().find(|line| line["seed"] == seed).expect("its line");
    assert!(own.iter().all(|line| score(chosen) <= score(line)), "{seed} of {own:?}");
    // The model is that student.
    let (data, model) = (bench.text("data"), bench.text("s/best/student.safetensors"));
    let seen = json(&["eval", "--data", &data, "--model", &model, "--json"]);
    assert_eq!(seen["quality"]["errors"].to_string(), chosen["test_errors"]);
    let nll = seen["quality"]["nll"].as_f64().expect("a number");
    assert!((nll - chosen["test_nll"].parse::<f64>().expect("a number")).abs() < 1e-9);

    // For people, and again from the sweep's own file, which must not be asked twice to write there.
    let (config, again) = (bench.text("s/config.toml"), bench.text("again"));
    let out = binary().args(["sweep", "--config", &config, "--out", &again]).output().expect("it runs");
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let row = text.lines().nth(best + 2).expect("a row");
    assert!(row.ends_with(" best") && row.starts_with(["0.1", "2", "20"][best]), "{text}");
    for words in
        ["temperature", "validation errors", " ± ", "60 validation and 40 test rows", "Best by validation"]
    {
        assert!(text.contains(words), "`{words}` is not in: {text}");
    }
    assert!(text.contains(report["best"]["options"].as_str().expect("options")), "{text}");
    assert_eq!(hashes(&bench, "s", &["temperature"]), hashes(&bench, "again", &["temperature"]));
    fails(&["sweep", "--config", &config, "--out", &again], 2, &["sweep.csv exists", "--force"]);
    let said = binary().args(["config", "check", &config]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&said.stdout).contains("good for `limbeck sweep`"), "{said:?}");

    // Nothing to choose by: no best, and none of the sweep before is left.
    let none = ["--teacher", &teacher, "--layers", "7,3", "--grid", "lr=0.01", "--force"];
    let report = sweep(&bench, "s", &none);
    assert_eq!((&report["best"], &report["chosen_by"]), (&Value::Null, &value!("nothing")));
    assert!(!bench.path("s/best/student.safetensors").exists());
}

/// A student whose weights overflow is counted and left out; its neighbours do not feel it.
#[test]
fn a_student_that_diverges_falls_out_alone() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let args = ["--teacher", &teacher, "--layers", "7,5,3", "--optimizer", "sgd", "--validation", "0.2"];
    let calm = sweep(&bench, "calm", &[&args[..], &["--seeds", "2", "--grid", "lr=0.05,0.1"]].concat());
    let wild = sweep(&bench, "wild", &[&args[..], &["--seeds", "2", "--grid", "lr=1e38,0.05,0.1"]].concat());
    let lines = csv(&bench, "wild");
    assert!(
        lines[..2].iter().all(|l| !l["diverged_at"].is_empty() && l["test_errors"].is_empty()),
        "{lines:?}"
    );
    assert!(
        lines[2..].iter().all(|l| l["diverged_at"].is_empty() && !l["test_errors"].is_empty()),
        "{lines:?}"
    );
    assert_eq!(wild["cells"].as_array().expect("cells")[1..], calm["cells"].as_array().expect("cells")[..]);
    assert_eq!((&wild["cells"][0]["diverged"], &wild["cells"][0]["test"]), (&value!(2), &Value::Null));
    let all = hashes(&bench, "wild", &["lr"]);
    for (place, hash) in hashes(&bench, "calm", &["lr"]) {
        assert_eq!(all.get(&place), Some(&hash), "{place:?}");
    }
    assert_eq!(wild["best"]["options"], calm["best"]["options"]);
    // No best where there is no sound cell, and no failure.
    let only = sweep(&bench, "only", &[&args[..], &["--grid", "lr=1e38"]].concat());
    assert_eq!(only["best"], Value::Null);
}

#[test]
fn what_cannot_be_swept_is_refused_before_anything_is_written() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let (data, out) = (bench.text("data"), bench.text("out"));
    let refused = |more: &[&str], words: &[&str]| {
        let fixed = ["sweep", "--data", &data, "--teacher", &teacher, "--steps", "5", "--out", &out];
        fails(&[&fixed[..], more].concat(), 2, words);
        assert!(!bench.path("out").exists(), "{more:?}");
    };
    let layers = ["--layers", "7,3"];
    let with = |grid: &'static [&'static str]| [&layers[..], grid].concat();
    refused(&layers, &["--grid", "at least one", "hint:"]);
    refused(&["--grid", "lr=0.1"], &["--layers", "--grid layers"]);
    refused(&with(&["--grid", "temprature=1"]), &["did you mean `temperature`?"]);
    refused(&with(&["--grid", "lr=0.1,x"]), &["lr: expected a number, found `x`"]);
    refused(&with(&["--grid", "lr=0.1", "--grid", "lr=0.2"]), &["`lr` twice"]);
    refused(&with(&["--grid", "lr=0"]), &["--grid lr", "above 0"]);
    refused(&with(&["--grid", "temperature=1,-2"]), &["temperature", "above 0", "-2"]);
    refused(&with(&["--grid", "label-smoothing=0,1"]), &["label smoothing", "below 1"]);
    refused(&with(&["--grid", "loss_beta=0.2"]), &["--loss-beta", "--loss forward-kl"]);
    refused(&with(&["--grid", "hard_weight=0.1,0.2"]), &["both or neither"]);
    refused(&with(&["--grid", "alpha=0.1", "--grid", "soft_weight=1"]), &["--alpha", "both"]);
    refused(&with(&["--grid", "seed=1,2", "--seeds", "2"]), &["--seeds", "both"]);
    refused(&["--grid", "layers=7-3,7-4"], &["--grid layers", "as in 7-3", "7-4"]);
    refused(&["--grid", "layers=6-3"], &["7 inputs", "6 inputs"]);
    // Logits that were cut at one temperature are good for no other.
    bench.logits(&teacher, "cut", &["--top-k", "2", "--temperature", "2"]);
    let logits = bench.text("cut");
    let cut = ["sweep", "--data", &data, "--teacher-logits", &logits, "--layers", "7,3", "--out", &out];
    fails(&[&cut[..], &["--grid", "temperature=2,4"]].concat(), 2, &["logits of every class", "top-k"]);
    // Rows to judge by.
    for part in ["x_test", "y_test"] {
        fs::remove_file(bench.path(&format!("data/{part}.npy"))).expect("removed");
    }
    refused(&with(&["--grid", "lr=0.1"]), &["validation or test rows", "--validation 0.1"]);
}
