//! Losses, presets and schedules from the command line.

use std::fs;

use crate::bench::{Bench, binary, fails, hash};

fn lines(bench: &Bench, out: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(bench.path(&format!("{out}/metrics.jsonl"))).expect("metrics");
    let lines = text.lines().map(|l| serde_json::from_str(l).expect("a JSON object"));
    lines.filter(|l: &serde_json::Value| l["split"] == "train").collect()
}

fn number(line: &serde_json::Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("{name} in {line}"))
}

#[test]
fn every_loss_teaches_and_each_in_its_own_way() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let mut students = Vec::new();
    for options in [
        "--loss forward-kl",
        "--loss forward-kl --clip 5e-2",
        "--loss reverse-kl",
        "--loss symmetric-kl",
        "--loss jsd --loss-beta 0.3",
        "--loss dkd",
        "--loss mse",
        "--loss sigmoid",
        "--loss virtual-teacher",
        "--loss forward-kl --standardise-logits",
        "--loss dkd --dkd-alpha 1 --dkd-beta 2 --standardise-logits",
    ] {
        let mut words: Vec<&str> = options.split(' ').collect();
        words.extend(["--alpha", "0.2", "--lr", "0.02", "--steps", "150", "--log-every", "10"]);
        if !words.contains(&"virtual-teacher") {
            words.extend(["--teacher", &teacher]);
        }
        let result = bench.distil("student", &words);
        assert!(number(&result["test"], "accuracy") > 0.6, "{options}: {result}");
        let text = result["loss"].as_str().expect("the canonical options");
        assert!(text.starts_with(options.split(" --standardise").next().unwrap_or_default()), "{text}");
        let lines = lines(&bench, "student");
        let (first, last) = (&lines[0], &lines[lines.len() - 1]);
        assert!(number(last, "loss") < number(first, "loss"), "{options}: {first} {last}");
        assert!(number(last, "gradient_ratio") > 0.0 && number(last, "soft_loss").is_finite());
        students.push(hash(&result));
    }
    students.sort();
    students.dedup();
    assert_eq!(students.len(), 11, "two losses gave the same student");
}

#[test]
fn a_preset_is_the_options_that_it_prints() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    for (preset, optimizer) in [("keras", "keras-adam"), ("keras-2020", "keras-adam"), ("deit", "adam")] {
        let preset = bench.distil("preset", &["--teacher", &teacher, "--preset", preset]);
        let canonical = preset["loss"].as_str().expect("options");
        let mut words: Vec<&str> = canonical.split(' ').collect();
        words.extend(["--teacher", &teacher, "--optimizer", optimizer]);
        assert_eq!(hash(&preset), hash(&bench.distil("canonical", &words)), "{canonical}");
    }
    let (data, out) = (bench.text("data"), bench.text("out"));
    let out = binary()
        .args(["distill", "--data", &data, "--layers", "7,5,3", "--steps", "2", "--out", &out])
        .args(["--teacher", &teacher, "--preset", "keras"])
        .output()
        .expect("it runs");
    let stderr = String::from_utf8_lossy(&out.stderr);
    let wanted = "loss: --loss forward-kl --clip 1e-7 --temperature 10 --hard-weight 0.1 --soft-weight 0.9 \
                  --optimizer keras-adam";
    assert!(stderr.contains(wanted), "{stderr}");
}

#[test]
fn schedules_change_what_they_name_and_the_rest_stays() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let run = |more: &[&str]| {
        let fixed = ["--teacher", &teacher, "--steps", "9", "--log-every", "1", "--alpha", "0.5"];
        let result = bench.distil("scheduled", &[&fixed, more].concat());
        (hash(&result), lines(&bench, "scheduled"))
    };
    let (plain, _) = run(&[]);
    let (same, _) = run(&["--lr-schedule", "constant", "--temperature-schedule", "linear:4"]);
    assert_eq!(plain, same, "schedules that change nothing");
    let (changed, lines) = run(&[
        "--lr-schedule",
        "warmup:3,cosine",
        "--temperature-schedule",
        "linear:2",
        "--hard-weight-schedule",
        "linear:0",
        "--soft-weight-schedule",
        "warmup:4",
    ]);
    assert_ne!(plain, changed);
    let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
    for (i, line) in lines.iter().enumerate() {
        let t = i as f64;
        assert!(near(number(line, "temperature"), 4.0 - t / 4.0), "{line}");
        let (hard, soft) = (0.5 * (1.0 - t / 8.0), 0.5 * ((t + 1.0) / 4.0).min(1.0));
        let total = hard * number(line, "hard_loss") + soft * number(line, "soft_loss");
        assert!(near(number(line, "loss"), total), "{line}: {total}");
    }
    assert!(near(number(&lines[0], "lr"), 1e-3 / 3.0) && near(number(&lines[2], "lr"), 1e-3));
    assert!(near(number(&lines[8], "lr"), 0.0));
}

#[test]
fn a_class_without_labels_is_warned_of_where_labels_teach() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let (data, out) = (bench.text("data"), bench.text("out"));
    let stderr = |more: &[&str]| {
        let out = binary()
            .args(["distill", "--data", &data, "--layers", "7,5,3", "--steps", "2", "--force", "--out", &out])
            .args(["--teacher", &teacher, "--json"])
            .args(more)
            .output()
            .expect("it runs");
        assert!(out.status.success(), "{out:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let warned = stderr(&["--drop-classes", "1"]);
    assert!(warned.contains("warning: no row is labelled 1: the hard loss"), "{warned}");
    let soft_alone = ["--drop-classes", "1", "--hard-weight", "0", "--soft-weight", "1"];
    assert!(!stderr(&soft_alone).contains("warning"));
    assert!(!stderr(&[]).contains("warning"));
    let few = stderr(&["--loss", "dkd", "--labels-per-class", "2"]);
    assert!(few.contains("144 of 150 rows have no label and so no dkd term"), "{few}");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let (data, out) = (bench.text("data"), bench.text("out"));
    let refuse = |more: &[&str], words: &[&str]| {
        let fixed = ["distill", "--data", &data, "--layers", "7,5,3", "--steps", "2", "--out", &out];
        fails(&[&fixed, more].concat(), 2, words);
        assert!(!bench.path("out").exists(), "{more:?} left something behind");
    };
    let with = |more: &[&str], words: &[&str]| refuse(&[&["--teacher", &teacher], more].concat(), words);
    refuse(&[], &["--teacher", "--teacher-logits", "virtual-teacher"]);
    with(&["--loss", "virtual-teacher"], &["--teacher", "makes its own"]);
    with(&["--loss", "jsd", "--loss-beta", "1"], &["beta of JSD", "above 0 and below 1"]);
    with(&["--loss", "mse", "--standardise-logits"], &["standardised logits", "mse"]);
    with(&["--loss", "dkd", "--loss-beta", "0.5"], &["--loss-beta", "--loss dkd"]);
    with(&["--preset", "trl", "--temperature-schedule", "linear:2"], &["depend on T"]);
    with(&["--lr-schedule", "liner"], &["linear[:END[:STEPS]]"]);
    with(&["--temperature-schedule", "linear"], &["temperature schedule", "above 0"]);
    with(&["--temperature-schedule", "warmup:3"], &["temperature schedule", "warm-up"]);
    with(&["--momentum-schedule", "linear:0.5"], &["momentum schedule", "sgd"]);
    // Two classes have no non-target part.
    let fixed = ["distill", "--data", &data, "--layers", "7,5,2", "--steps", "2", "--out", &out];
    fails(&[&fixed, ["--teacher", &teacher, "--loss", "dkd"].as_slice()].concat(), 2, &["dkd", "at least 3"]);
}
