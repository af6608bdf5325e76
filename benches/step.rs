//! Criterion's front door to `limbeck bench`: `cargo bench --bench step [-- FILTER]`.
//!
//! Criterion adds its statistics and its comparison with the last run; what is measured, and that
//! the result is checked first, is `limbeck::bench`'s. One sample is one measurement there (a median
//! over repeats, by the device's own clock where it has one), so the iteration counts that criterion
//! asks for only scale the answer.

use std::process::exit;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use limbeck::bench::{head, matmul, peak, step};
use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels::matmul::Choice;

/// A square product and the student's widest layer, forward and for its weights.
const PRODUCTS: [&str; 3] = ["square/1024", "hinton/student-l1", "hinton/d-weight-l1"];

fn main() {
    // Before anything starts a thread: it sets what the driver reads.
    limbeck::gpu::environment::prepare(None, None);
    limbeck::gpu::device::install_panic_hook();
    let gpu = or_exit(Gpu::open(&AdapterChoice::default()));
    eprintln!("adapter: {}", gpu.report.line());
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_secs(10))
        .configure_from_args();
    products(&gpu, &mut criterion);
    heads(&gpu, &mut criterion);
    steps(&gpu, &mut criterion);
    criterion.final_summary();
}

/// Every variant but plain, unsplit, and the one that a run takes.
fn products(gpu: &Gpu, criterion: &mut Criterion) {
    for shape in matmul::shapes(&PRODUCTS.map(str::to_owned)) {
        let q = shape.question;
        let operands = or_exit(matmul::Operands::new(gpu, q));
        let chosen = q.answer(gpu).text();
        let mut group = group(criterion, &format!("matmul/{}", shape.name));
        group.throughput(Throughput::Elements(2 * (q.replicas * q.m * q.n * q.k) as u64));
        for choice in Choice::all(gpu) {
            let text = choice.text();
            if text == chosen || choice.splits == 1 && choice.variant.name != "plain" {
                sample(&mut group, &text, || or_exit(operands.time(gpu, choice)).median);
            }
        }
        group.finish();
    }
}

fn heads(gpu: &Gpu, criterion: &mut Criterion) {
    // Only the fractions need the peaks, and criterion shows none.
    let none = peak::Peak { flops: 1.0, bytes: 1.0 };
    let mut group = group(criterion, "head");
    for &(name, batch, k) in head::SHAPES {
        // z, v and d_z.
        group.throughput(Throughput::Bytes(3 * 4 * (batch * k) as u64));
        let shapes = [name.to_owned()];
        sample(&mut group, name.trim_start_matches("head/"), || {
            or_exit(head::run(gpu, &none, &shapes, &[])).first().map_or(f64::NAN, |r| 1e-3 * r.median_ms)
        });
    }
    group.finish();
}

fn steps(gpu: &Gpu, criterion: &mut Criterion) {
    let mut group = group(criterion, "step");
    for pair in step::PAIRS {
        group.throughput(Throughput::Elements(pair.replicas as u64));
        let mut bench = or_exit(step::Bench::new(gpu, *pair));
        let once = or_exit(bench.train(0.2, 4));
        let per_submission = (0.05 / once).ceil().clamp(1.0, f64::from(limbeck::gpu::program::SLOTS)) as u32;
        sample(&mut group, pair.name, || or_exit(bench.train(0.5, per_submission)));
    }
    group.finish();
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group
}

/// `seconds` measures one execution.
fn sample(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, mut seconds: impl FnMut() -> f64) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| Duration::from_secs_f64(seconds() * iterations as f64));
    });
}

fn or_exit<T>(result: limbeck::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        exit(i32::from(error.exit_code()))
    })
}
