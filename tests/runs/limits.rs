//! Patience, the best weights on validation, limits of steps and time.

use std::time::{Duration, Instant};

use crate::bench::{Bench, fails, succeeds};

#[test]
fn patience_ends_the_run_and_the_best_weights_stay() {
    let bench = Bench::new();
    // At this rate validation gets worse again soon.
    let fixed = ["--epochs", "40", "--lr", "0.05", "--checkpoint-every", "never"];
    succeeds(bench.train("run", &fixed).args(["--patience", "3"]));
    let summary = bench.json("run/summary.json");
    let (steps, best) = (summary["steps"].as_u64(), summary["best_step"].as_u64());
    let (steps, best) = (steps.expect("steps"), best.expect("a step"));
    assert_eq!(summary["ending"], "patience");
    // 3058 training rows: 48 steps an epoch.
    assert_eq!(steps, best + 3 * 48, "{summary}");
    let lines: Vec<serde_json::Value> = bench
        .text("run/metrics.jsonl")
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .filter(|l: &serde_json::Value| l["split"] == "validation")
        .collect();
    let score = |l: &serde_json::Value| {
        (l["accuracy"].as_f64().expect("a number"), -l["hard_loss"].as_f64().expect("a number"))
    };
    let top = lines.iter().max_by(|a, b| score(a).partial_cmp(&score(b)).expect("numbers")).expect("lines");
    assert_eq!(top["step"].as_u64(), Some(best));
    assert_eq!(summary["validation"]["accuracy"], top["accuracy"], "the weights are those of the best step");

    // The same run without patience until that step has these weights.
    succeeds(bench.train("until", &fixed).args(["--max-steps", &best.to_string()]));
    assert_eq!(bench.hash("run"), bench.hash("until"));
}

#[test]
fn the_best_weights_and_the_patience_survive_a_resume() {
    let bench = Bench::new();
    let fixed = ["--epochs", "40", "--lr", "0.05", "--patience", "3"];
    succeeds(&mut bench.train("whole", &fixed));
    let best = bench.json("whole/summary.json")["best_step"].as_u64().expect("a step");
    // Between the best step and the end.
    succeeds(bench.train("parts", &fixed).args(["--max-steps", &(best + 70).to_string()]));
    succeeds(bench.train("parts", &fixed).arg("--resume"));
    bench.same("whole", "parts");
    assert_eq!(bench.json("parts/summary.json")["best_step"].as_u64(), Some(best));
    // What had run out of patience stays as it is.
    succeeds(bench.train("parts", &fixed).arg("--resume"));
    bench.same("whole", "parts");
}

#[test]
fn limits_of_time_end_a_run_that_can_go_on() {
    let bench = Bench::new();
    let began = Instant::now();
    succeeds(&mut bench.train("run", &["--steps", "1000000", "--max-minutes", "0.01"]));
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let summary = bench.json("run/summary.json");
    assert_eq!(summary["ending"], "max_minutes");
    let steps = summary["steps"].as_u64().expect("steps");
    assert_eq!(bench.checkpoints("run"), [steps]);
    succeeds(
        bench
            .train("run", &["--resume", "--steps", "1000000"])
            .args(["--max-steps", &(steps + 5).to_string()]),
    );
    assert_eq!(bench.json("run/summary.json")["steps"].as_u64(), Some(steps + 5));
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let bench = Bench::new();
    for (more, words) in [
        (["--keep", "0"], "--keep"),
        (["--patience", "0"], "--patience"),
        (["--max-steps", "0"], "--max-steps"),
        (["--max-minutes", "-1"], "--max-minutes"),
        (["--max-minutes", "0"], "--max-minutes"),
        (["--checkpoint-every", "5x"], "checkpoint-every"),
    ] {
        let more = [more[0].to_owned() + "=" + more[1]];
        let said = fails(&mut bench.train("run", &[&more[0]]), 2);
        assert!(said.contains(words), "{said}");
    }
    // The bench's own share of validation rows, taken back.
    let toml = bench.path("none.toml");
    std::fs::write(&toml, "validation = 0\npatience = 1\nlayers = [64, 8, 10]\n").expect("written");
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/optdigits");
    let mut command = crate::bench::limbeck();
    command
        .arg("train")
        .arg("--config")
        .arg(toml)
        .arg("--data")
        .arg(data)
        .arg("--out")
        .arg(bench.path("run"));
    let said = fails(&mut command, 2);
    assert!(said.contains("--patience") && said.contains("--validation"), "{said}");
    assert!(!bench.path("run").exists());
}
