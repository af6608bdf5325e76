//! A finished run, made again from its folder.

use std::fs;

use crate::bench::{Bench, limbeck, succeeds};

fn replay(bench: &Bench, run: &str, more: &[&str]) -> (Option<i32>, serde_json::Value, String) {
    let mut command = limbeck();
    let out = command.args(["replay", "--json"]).arg(bench.path(run)).args(more).output().expect("it runs");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (out.status.code(), serde_json::from_slice(&out.stdout).unwrap_or_default(), said)
}

#[test]
fn a_run_is_made_again_from_its_folder() {
    let bench = Bench::new();
    // Ended early, interrupted in between: the replay walks it in one.
    let fixed = ["--epochs", "9", "--lr", "0.02", "--seed", "5", "--patience", "8"];
    succeeds(bench.train("run", &fixed).args(["--max-steps", "70"]));
    succeeds(bench.train("run", &fixed).args(["--max-steps", "150", "--resume"]));
    let (code, report, said) = replay(&bench, "run", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        (&report["same_weights"], &report["same_metrics"], &report["steps"]),
        (&true.into(), &true.into(), &150.into())
    );
    assert_eq!(report["weights_sha256"][0], bench.hash("run"));
    assert!(
        report["drift"].is_null() && report["different"].as_array().is_some_and(Vec::is_empty),
        "{report}"
    );
}

/// What the driver is told of a large step, a replay tells it too.
#[test]
fn a_large_run_is_made_again_on_the_same_device() {
    let bench = Bench::new();
    succeeds(&mut bench.train("run", &["--layers", "64,1024,1024,10", "--steps", "2"]));
    let (code, report, said) = replay(&bench, "run", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(report["different"].as_array().is_some_and(Vec::is_empty), "{report}");
    assert_eq!(report["same_weights"], true, "{report}");
}

#[test]
fn a_replay_says_what_is_different_and_how_far_it_drifted() {
    let bench = Bench::new();
    succeeds(&mut bench.train("run", &["--steps", "60", "--lr", "0.01"]));
    // As if it had been another driver's, with a last bit of its own.
    let edit = |name: &str, from: &str, to: &str| {
        let text = bench.text(name);
        assert!(text.contains(from), "{name}: {text}");
        fs::write(bench.path(name), text.replace(from, to)).expect("written");
    };
    let hash = bench.hash("run");
    edit("run/summary.json", &hash, &"0".repeat(64));
    let mut model = fs::read(bench.path("run/model.safetensors")).expect("a model");
    let at = model.len() - 4;
    model[at] ^= 1;
    fs::write(bench.path("run/model.safetensors"), &model).expect("written");

    // On the same device that is a fault.
    let (code, report, said) = replay(&bench, "run", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("other weights on the same device"), "{said}");
    assert_eq!(report["same_weights"], false);

    let driver = bench.json("run/run.json")["device"]["driver"].as_str().expect("a driver").to_owned();
    edit("run/run.json", &driver, "Another 1.2.3");
    let (code, report, said) = replay(&bench, "run", &[]);
    assert_eq!(code, Some(0), "{said}");
    let different = report["different"].to_string();
    assert!(different.contains("driver: Another 1.2.3 then"), "{different}");
    let drift = |key: &str| report["drift"][key].as_f64().expect("a number");
    assert!(drift("max_abs") > 0.0 && drift("max_abs") < 1e-6, "{report}");
    assert!(drift("relative_norm") > 0.0 && drift("relative_norm") < 1e-6, "{report}");
}

#[test]
fn what_cannot_be_replayed_says_why() {
    let bench = Bench::new();
    succeeds(&mut bench.train("run", &["--steps", "20"]));
    let text = bench.text("run/run.json");
    let data = bench.json("run/run.json")["data"]["train"].as_str().expect("a hash").to_owned();
    fs::write(bench.path("run/run.json"), text.replace(&data, &"f".repeat(64))).expect("written");
    let (code, _, said) = replay(&bench, "run", &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("replay the run") && said.contains("train ffffffffffff"), "{said}");

    fs::write(bench.path("run/run.json"), text).expect("written");
    fs::remove_file(bench.path("run/summary.json")).expect("removed");
    let (code, _, said) = replay(&bench, "run", &[]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("summary.json") && said.contains("--resume"), "{said}");
    let (code, _, said) = replay(&bench, "none", &[]);
    assert_eq!(code, Some(4), "{said}");
}
