//! Signals: asked to end, a run leaves a checkpoint; killed at any moment, it loses only time.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use limbeck::rng;

use crate::bench::{Bench, succeeds};

/// A child that is not left behind when a test fails.
struct Running(Child, BufReader<ChildStderr>);

impl Running {
    fn begin(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it begins");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        Self(child, stderr)
    }

    fn signal(&self, name: &str) {
        // No other process: a child that has ended keeps its number until it is waited for.
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.0.id().to_string()).status();
        assert!(sent.expect("kill").success());
    }

    /// What it says up to a line with one of `words` in it, or to its end.
    fn says(&mut self, words: &[&str]) -> String {
        let mut said = String::new();
        while !words.iter().any(|word| said.contains(word)) {
            if self.1.read_line(&mut said).expect("UTF-8") == 0 {
                break;
            }
        }
        said
    }

    /// Exit code (none: it was killed) and the rest of stderr.
    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.1.read_to_string(&mut said).expect("UTF-8");
        (self.0.wait().expect("an end").code(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `what` holds.
fn until(what: impl Fn() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(120), "it never came to it");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const STEPS: &str = "4000";
const FIXED: [&str; 6] = ["--steps", STEPS, "--log-every", "50", "--lr", "0.003"];

#[test]
fn a_signal_leaves_a_checkpoint_and_exit_code_130() {
    let bench = Bench::new();
    succeeds(&mut bench.train("whole", &FIXED));
    for (out, signal) in [("int", "INT"), ("term", "TERM")] {
        let run = Running::begin(bench.train(out, &FIXED).args(["--checkpoint-every", "never"]));
        let metrics = bench.path(&format!("{out}/metrics.jsonl"));
        until(|| metrics.metadata().is_ok_and(|m| m.len() > 0));
        run.signal(signal);
        let (code, said) = run.end();
        assert_eq!(code, Some(130), "{said}");
        assert!(said.contains("interrupted after step") && said.contains("--resume"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        let record = bench.json(&format!("{out}/run.json"));
        assert_eq!((&record["status"], &record["exit_code"]), (&"interrupted".into(), &130.into()));
        assert_eq!(bench.checkpoints(out).len(), 1);
        assert!(!bench.path(&format!("{out}/model.safetensors")).exists());
        succeeds(bench.train(out, &FIXED).arg("--resume"));
        bench.same("whole", out);
    }
}

/// Two signals within one step, however fast the device: both come while the process is stopped.
#[test]
fn a_second_signal_ends_at_once() {
    let bench = Bench::new();
    let long = ["--layers", "64,1536,1536,10", "--batch-size", "3058", "--steps", "1000", "--log-every", "1"];
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/optdigits");
    let mut command = crate::bench::limbeck();
    command.arg("train").arg("--data").arg(data).arg("--out").arg(bench.path("run")).args(long);
    let run = Running::begin(&mut command);
    until(|| bench.path("run/metrics.jsonl").metadata().is_ok_and(|m| m.len() > 0));
    for signal in ["STOP", "TERM", "INT", "CONT"] {
        run.signal(signal);
    }
    let (code, said) = run.end();
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("once more to end at once") && !said.contains("error:"), "{said}");
    assert!(bench.checkpoints("run").is_empty(), "nothing was waited for");
    assert_eq!(bench.json("run/run.json")["status"], "running");
}

#[test]
fn killed_at_fifty_moments_it_ends_with_the_same_bits() {
    const KILLS: u64 = 50;
    let bench = Bench::new();
    let began = Instant::now();
    succeeds(&mut bench.train("whole", &FIXED));
    let whole = began.elapsed().as_secs_f64();
    let mut within = 0;
    for kill in 0..KILLS {
        let mut run =
            Running::begin(bench.train("killed", &FIXED).args(["--resume", "--checkpoint-every", "40"]));
        // In turn from the very start, and from where the training begins.
        let begun = if kill % 2 == 0 { run.says(&["resuming", "beginning"]) } else { String::new() };
        let moment = f64::from(rng::uniform(7, rng::stream::CHECK, kill));
        std::thread::sleep(Duration::from_secs_f64(0.07 * whole * moment));
        run.signal("KILL");
        let (code, rest) = run.end();
        let said = begun + &rest;
        assert!(!said.contains("error:") && !said.contains("skipping"), "{said}");
        within += u32::from(code.is_none() && said.contains("resuming"));
        if bench.path("killed/metrics.jsonl").exists() {
            // Every line that is complete is a row; only the last one may be cut.
            let text = bench.text("killed/metrics.jsonl");
            let complete = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
            assert!(complete.lines().all(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()), "{text}");
        }
    }
    assert!(within >= 10, "only {within} of {KILLS} runs were killed after they had resumed");
    succeeds(bench.train("killed", &FIXED).arg("--resume"));
    bench.same("whole", "killed");
    let left: Vec<_> = std::fs::read_dir(bench.path("killed/checkpoints"))
        .expect("checkpoints")
        .map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| !name.starts_with("step-") && name != ".lock")
        .collect();
    assert!(left.is_empty(), "left over: {left:?}");
}

#[test]
fn a_run_is_open_in_one_process_only() {
    let bench = Bench::new();
    // No device is done with it before it is asked to end.
    let endless = ["--steps", "1000000000", "--log-every", "50"];
    let run = Running::begin(&mut bench.train("run", &endless));
    until(|| bench.path("run/metrics.jsonl").metadata().is_ok_and(|m| m.len() > 0));
    let said = crate::bench::fails(bench.train("run", &endless).arg("--resume"), 2);
    assert!(said.contains("no other process"), "{said}");
    run.signal("INT");
    assert_eq!(run.end().0, Some(130));
}
