//! Long runs: neither memory nor the time of a step grows. On Linux, which says what a process holds.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::bench::{Bench, limbeck, succeeds};

/// What was seen of a run while it went.
struct Sample {
    at: Duration,
    /// Clock ticks that it had on processors, its own and the system's for it.
    ticks: u64,
    step: u64,
    bytes: u64,
}

/// Distils the small pair for `steps` steps, with checkpoints on the way, and watches it.
fn watch(steps: u64) -> Vec<Sample> {
    let bench = Bench::new();
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/optdigits");
    let mut teacher = limbeck();
    teacher.arg("train").arg("--data").arg(&data).arg("--out").arg(bench.path("teacher"));
    succeeds(teacher.args(["--layers", "64,128,128,10", "--steps", "300"]));

    let mut student = limbeck();
    student.arg("distill").arg("--data").arg(&data).arg("--out").arg(bench.path("student"));
    student.arg("--teacher").arg(bench.path("teacher/model.safetensors"));
    student.args(["--layers", "64,32,10", "--batch-size", "64", "--log-every", "100"]);
    student.args(["--steps", &steps.to_string(), "--checkpoint-every", &(steps / 50).to_string()]);
    let mut child = student.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it begins");
    let began = Instant::now();
    let mut samples = Vec::new();
    while child.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_millis(10));
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let held = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        let lines = fs::read_to_string(bench.path("student/metrics.jsonl")).map_or(0, |t| t.lines().count());
        if let (Some(kib), true) = (held, lines > 0) {
            let (at, step) = (began.elapsed(), 100 * lines as u64);
            samples.push(Sample { at, ticks: ticks(child.id()), step, bytes: kib << 10 });
        }
    }
    assert!(child.wait().expect("an end").success());
    assert_eq!(bench.json("student/summary.json")["steps"].as_u64(), Some(steps));
    samples
}

/// Fields 14 and 15 of proc(5)'s stat; the name before them may hold anything but a parenthesis at its end.
fn ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum()
}

/// The first fifth is for warming up; then the two halves of the rest are compared. What comes after
/// the last step (the test rows are looked at) is not part of them.
fn judge(steps: u64, samples: &[Sample]) -> (f64, f64) {
    let part = |from: f64, to: f64| {
        let (from, to) = ((from * steps as f64) as u64, (to * steps as f64) as u64);
        samples.iter().filter(|s| (from..to).contains(&s.step)).collect::<Vec<_>>()
    };
    let (first, second) = (part(0.2, 0.6), part(0.6, 1.0));
    assert!(first.len() > 5 && second.len() > 5, "{} and {} samples", first.len(), second.len());
    let most = |part: &[&Sample]| part.iter().map(|s| s.bytes).max().unwrap_or(0) as f64;
    let pace = |part: &[&Sample]| {
        let (a, b) = (part[0], part[part.len() - 1]);
        (b.at - a.at).as_secs_f64() / (b.step - a.step) as f64
    };
    let grown = (most(&second) - most(&first)) / f64::from(1 << 20);
    let work = |part: &[&Sample]| {
        let (a, b) = (part[0], part[part.len() - 1]);
        (b.ticks - a.ticks) as f64 / (b.step - a.step) as f64
    };
    let slower = work(&second) / work(&first);
    println!(
        "{steps} steps: {:.1} MiB, grown by {grown:.2} MiB; {:.3} ms a step, then {:.3} times that; processor \
         time {slower:.3} times",
        most(&first) / f64::from(1 << 20),
        1e3 * pace(&first),
        pace(&second) / pace(&first),
    );
    (grown, slower)
}

#[test]
fn memory_does_not_grow() {
    let steps = 5000;
    let (grown, _) = judge(steps, &watch(steps));
    assert!(grown < 4.0, "{grown} MiB in 3000 steps");
}

/// `make test-soak`
#[test]
#[ignore = "takes minutes"]
fn neither_memory_nor_time_grows_over_200_000_steps() {
    let steps = 200_000;
    let (grown, slower) = judge(steps, &watch(steps));
    assert!(grown < 4.0, "{grown} MiB");
    // Of processors, on which a software driver runs its kernels too: that of the clock is everybody's.
    assert!(slower < 1.2, "{slower} times the time of a step");
}
