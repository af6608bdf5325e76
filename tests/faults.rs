//! Devices that are lost, out of memory or asked for too much: errors, never panics.

use limbeck::data::{Dataset, Elements};
use limbeck::distill::infer::Inference;
use limbeck::distill::{Guard, Loss, Optimizer, Teacher};
use limbeck::error::{Error, Result};
use limbeck::gpu::program::Part;
use limbeck::gpu::program::Work;
use limbeck::gpu::readback::Flights;
use limbeck::gpu::{AdapterChoice, Call, Gpu, Plan, Tensor};
use limbeck::kernels::matmul::Activation;
use limbeck::kernels::{metrics, sgd, step};
use limbeck::mlp::Mlp;
use limbeck::mlp::weights::{Initializer, Weights};
use limbeck::train::{Length, Recipe, Replica, Rows, Run};

fn open() -> Gpu {
    Gpu::open(&AdapterChoice::default()).expect("a device")
}

/// The words of a device error; anything else fails the test.
fn device_error<T>(result: Result<T>, what: &str) -> String {
    match result {
        Err(error @ Error::Device { .. }) => {
            assert_eq!(error.exit_code(), 5, "{what}");
            error.to_string()
        }
        Err(other) => panic!("{what}: expected a device error, found {other:?}"),
        Ok(_) => panic!("{what}: expected a device error, found success"),
    }
}

fn data() -> Dataset {
    let x = (0..40 * 6).map(|i| (i % 17) as f32 / 17.0).collect();
    let labels = (0..40).map(|i| i % 3).collect();
    Dataset::new("here", Elements::F32(x), vec![6], Some(labels), Some(3)).expect("a set")
}

fn student() -> Weights {
    Weights::init(&[6, 5, 3], Activation::Relu, Initializer::He, 1).expect("weights")
}

fn run<'a>(gpu: &'a Gpu, data: &'a Dataset, steps: u64) -> Result<Run<'a>> {
    let recipe = Recipe {
        batch: 8,
        accumulate: 1,
        length: Length::Steps(steps),
        optimizer: Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
        shuffle: true,
        log_every: 1,
        guard: Guard::default(),
        features: Vec::new(),
        regularize: Default::default(),
    };
    let replica =
        Replica { seed: 1, lr: 0.1, loss: Loss::HARD, schedules: Default::default(), student: student() };
    Run::new(gpu, data, Rows::default(), &Teacher::None, recipe, vec![replica])
}

#[test]
fn every_operation_on_a_lost_device_is_an_error() {
    let (gpu, data) = (open(), data());
    let tensor = Tensor::zeros(&gpu, "t", [1, 64, 8]).expect("memory");
    let network = Mlp::upload(&gpu, "n", &[student()]).expect("memory");
    let inference = Inference::record(&gpu, &network, &data, 16).expect("a plan");
    let (ring, other) = (step::ring(&gpu, 1).expect("memory"), tensor.clone());
    let metrics = Tensor::zeros(&gpu, "m", [1, 64, 8]).expect("memory");
    let mut plan = Plan::new(&gpu);
    metrics::record(&mut plan, "before", &tensor, &metrics).expect("a dispatch");
    let program = plan.finish().expect("a plan");
    let mut begun = Plan::new(&gpu);
    metrics::record(&mut begun, "begun", &tensor, &metrics).expect("a dispatch");
    let mut flights = Flights::default();
    flights.submit(&gpu, &[Part::run(&program, 0..1)], Some(((), &metrics))).expect("a submission");

    gpu.lose();

    device_error(Tensor::zeros(&gpu, "late", [1, 1, 4]), "allocate");
    device_error(tensor.write(&gpu, &vec![0.0_f32; 512]), "write");
    device_error(tensor.read_blocking::<f32>(&gpu), "read");
    tensor.fill_bits(&gpu, 1);
    device_error(Mlp::upload(&gpu, "late", &[student()]), "upload");
    device_error(network.read_blocking(&gpu), "read weights");
    device_error(inference.logits_blocking(&gpu), "infer");
    device_error(inference.cache(&gpu), "cache");
    device_error(Inference::record(&gpu, &network, &data, 16), "record inference");
    let mut late = Plan::new(&gpu);
    device_error(metrics::record(&mut late, "late", &other, &metrics), "record");
    device_error(begun.finish(), "finish");
    device_error(program.submit(&gpu, 1), "submit");
    device_error(program.trace_blocking(&gpu), "trace");
    device_error(program.profile_blocking(&gpu), "profile");
    device_error(
        flights.submit(&gpu, &[Part::run(&program, 0..1)], Some(((), &metrics))),
        "submit with a copy",
    );
    device_error(flights.arrived(&gpu, true), "wait for a copy");
    device_error(step::write(&gpu, &ring, &[step::Step::default()]), "write steps");
    device_error(gpu.wait_blocking(), "wait");
    device_error(run(&gpu, &data, 10), "begin a run");
    let words = device_error(gpu.check(), "check");
    assert!(words.contains("device lost"), "{words}");
}

#[test]
fn a_run_ends_with_an_error_when_its_device_is_lost() {
    let (gpu, data) = (open(), data());
    let mut run = run(&gpu, &data, 2000).expect("a run");
    let mut rows = 0;
    let trained = run.train(|_| {
        rows += 1;
        if rows == 3 {
            gpu.lose();
        }
        Ok(())
    });
    device_error(trained, "train");
    assert!((3..2000).contains(&rows), "{rows} rows");
}

#[test]
fn a_layer_that_no_device_holds_names_bytes_and_limit() {
    let gpu = open();
    let network = Mlp::zeros(&gpu, "vast", 1, &[200_000, 200_000], Activation::Relu);
    let words = device_error(network, "200,000 x 200,000");
    let limit = gpu.report.max_buffer.to_string();
    // 4 * 200,000 * 200,001, and the alignment of the arena.
    assert!(words.contains("wanted 160000800") && words.contains(&limit), "{words}");
    let overflow = Tensor::zeros(&gpu, "vaster", [usize::MAX / 2, 3, 3]);
    assert!(device_error(overflow, "overflow").contains("overflows"));
    // The device is as good as before.
    Tensor::zeros(&gpu, "small", [1, 1, 4]).expect("memory");
}

#[test]
fn a_dispatch_past_the_limits_is_refused_when_recorded() {
    let gpu = open();
    let stats = Tensor::zeros(&gpu, "stats", [1, 64, 8]).expect("memory");
    let metrics = Tensor::zeros(&gpu, "metrics", [1, 64, 8]).expect("memory");
    let tensors = [("stats", &stats), ("metrics", &metrics)];
    let call = |grid| Call {
        kernel: &metrics::KERNEL,
        constants: vec![],
        label: "wide",
        params: metrics::Params::default(),
        tensors: &tensors,
        grid,
        work: Work::default(),
    };
    let mut plan = Plan::new(&gpu);
    for grid in [[70_000, 1, 1], [1, 70_000, 1], [1, 1, 70_000]] {
        let words = device_error(plan.dispatch(call(grid)), "grid");
        assert!(words.contains("70000") && words.contains("65535") && words.contains("wide"), "{words}");
    }
    plan.dispatch(call([1, 1, 1])).expect("a dispatch within the limits");
    assert_eq!(plan.finish().expect("a plan").len(), 1, "what was refused is not in the plan");
}

#[test]
fn a_binding_past_the_limit_is_refused_when_recorded() {
    let gpu = open();
    let most = gpu.max_binding();
    // Refused by its shape, so the memory need not be there.
    let mut stats = Tensor::zeros(&gpu, "stats", [1, 64, 8]).expect("memory");
    stats.shape[1] = most as usize / 4 / 8 + 64;
    let metrics = Tensor::zeros(&gpu, "metrics", [1, 64, 8]).expect("memory");
    let words = device_error(metrics::record(&mut Plan::new(&gpu), "long", &stats, &metrics), "binding");
    assert!(words.contains(&most.to_string()) && words.contains("stats"), "{words}");
}

#[test]
fn an_arena_that_is_no_multiple_of_eight_long_is_refused() {
    let gpu = open();
    let [g, w, m] = ["g", "w", "m"].map(|label| Tensor::zeros(&gpu, label, [2, 1, 12]).expect("memory"));
    let ring = step::ring(&gpu, 2).expect("memory");
    let refused = sgd::record(&mut Plan::new(&gpu), "update", false, 0.0, &ring, &g, &w, &m, None);
    let words = refused.expect_err("half of a group is the next replica's").to_string();
    assert!(words.contains("multiple of 8") && words.contains("12"), "{words}");
}

#[test]
fn memory_that_is_written_and_used_twice_is_refused() {
    let gpu = open();
    let (_, parts) =
        Tensor::arena(&gpu, "arena", 3, &[("a".into(), 1, 64), ("b".into(), 1, 64)]).expect("memory");
    let tensor = |label| Tensor::zeros(&gpu, label, [3, 1, 64]).expect("memory");
    let (weight, gradient, momentum) = (tensor("w"), tensor("g"), tensor("m"));
    let ring = step::ring(&gpu, 3).expect("memory");
    let record = |g: &Tensor, w: &Tensor, m: &Tensor| {
        sgd::record(&mut Plan::new(&gpu), "update", false, 0.0, &ring, g, w, m, None)
    };
    record(&gradient, &weight, &momentum).expect("three buffers");
    for (g, w, m) in [
        (&weight, &weight, &momentum),
        (&gradient, &weight, &weight),
        (&momentum, &weight, &momentum),
        // One buffer read and written, though apart: wgpu refuses it only when it runs.
        (&parts[0], &parts[1], &momentum),
    ] {
        let words = device_error(record(g, w, m), "aliasing");
        assert!(words.contains("is written as") && words.contains("update"), "{words}");
    }
}

#[test]
fn a_fault_that_nobody_waits_for_is_kept_for_the_next_who_asks() {
    let gpu = open();
    let mut long = Tensor::zeros(&gpu, "short", [1, 1, 4]).expect("memory");
    long.shape[1] = 1000;
    // The write is refused by the device, outside any error scope.
    long.fill_bits(&gpu, 7);
    let words = device_error(gpu.check(), "check");
    assert!(words.to_lowercase().contains("overrun") || words.contains("size"), "{words}");
    device_error(Tensor::zeros(&gpu, "next", [1, 1, 4]), "the next operation");
}
