//! One distillation step in burn, timed: `limbeck-peer-burn wgpu|vulkan|flex --pair hinton`.
//!
//! Prints one JSON line, with `error` in it where something failed.

use std::panic::catch_unwind;
use std::time::Instant;

use burn::module::{Initializer, Module};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::{log_softmax, relu, softmax};
use burn::tensor::{Device, DeviceKind, Int, Tensor, TensorData};
use serde_json::{Value, json};

/// Pinned in Cargo.toml.
const VERSION: &str = "0.22.1";
const ROWS: usize = 4096;
const TEMPERATURE: f32 = 4.0;
const HARD: f32 = 0.1;
const SOFT: f32 = 0.9;
const RATE: f64 = 1e-4;

struct Pair {
    teacher: &'static [usize],
    student: &'static [usize],
    batch: usize,
}

fn pair(name: &str) -> Result<Pair, String> {
    match name {
        "hinton" => Ok(Pair { teacher: &[784, 1200, 1200, 10], student: &[784, 800, 800, 10], batch: 128 }),
        "small" => Ok(Pair { teacher: &[64, 128, 128, 10], student: &[64, 32, 10], batch: 64 }),
        _ => Err(format!("no pair `{name}`")),
    }
}

#[derive(Module, Debug)]
struct Mlp {
    layers: Vec<Linear>,
}

impl Mlp {
    fn new(sizes: &[usize], device: &Device) -> Self {
        let he = Initializer::KaimingNormal { gain: 2f64.sqrt(), fan_out_only: false };
        let layer = |s: &[usize]| LinearConfig::new(s[0], s[1]).with_initializer(he.clone()).init(device);
        Self { layers: sizes.windows(2).map(layer).collect() }
    }

    fn forward(&self, mut x: Tensor<2>) -> Tensor<2> {
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x);
            if i + 1 < self.layers.len() {
                x = relu(x);
            }
        }
        x
    }
}

/// splitmix64: the values are arbitrary, but the same in every run.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 5u64;
    (0..count)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z >> 56) as u8
        })
        .collect()
}

struct Bench {
    device: Device,
    batch: usize,
    x: Tensor<2>,
    y: Tensor<2, Int>,
    teacher: Mlp,
    student: Option<Mlp>,
    optimizer: ModuleOptimizer,
    done: usize,
}

impl Bench {
    fn new(pair: &Pair, device: Device) -> Self {
        let features = pair.teacher[0];
        let pixels: Vec<f32> = bytes(ROWS * features).iter().map(|&b| f32::from(b) / 255.0).collect();
        let labels: Vec<i32> = (0..ROWS as i32).map(|i| i % 10).collect();
        // Without autodiff: neither the data nor the frozen teacher enters a graph.
        Self {
            x: Tensor::from_data(TensorData::new(pixels, [ROWS, features]), &device),
            y: Tensor::from_data(TensorData::new(labels, [ROWS, 1]), &device),
            teacher: Mlp::new(pair.teacher, &device),
            student: Some(Mlp::new(pair.student, &device.clone().autodiff())),
            optimizer: AdamConfig::new().with_epsilon(1e-8).init(),
            batch: pair.batch,
            device,
            done: 0,
        }
    }

    fn step(&mut self) -> Tensor<1> {
        let start = self.done % (ROWS / self.batch) * self.batch;
        self.done += 1;
        let x = self.x.clone().narrow(0, start, self.batch);
        let y = self.y.clone().narrow(0, start, self.batch);
        let v = self.teacher.forward(x.clone()) / TEMPERATURE;
        let (p, log_p) = (softmax(v.clone(), 1), log_softmax(v, 1));
        let student = self.student.take().expect("put back at the end of each step");
        let z = student.forward(x.autodiff());
        let hard = -log_softmax(z.clone(), 1).gather(1, y.autodiff()).mean();
        let log_q = log_softmax(z / TEMPERATURE, 1);
        let soft = (p.autodiff() * (log_p.autodiff() - log_q)).sum() / self.batch as f32;
        let loss = hard * HARD + soft * (SOFT * TEMPERATURE * TEMPERATURE);
        let gradients = GradientsParams::from_grads(loss.backward(), &student);
        self.student = Some(self.optimizer.step(RATE, student, gradients));
        loss.inner()
    }

    fn steps(&mut self, count: usize) -> f64 {
        let began = Instant::now();
        for _ in 0..count {
            self.step();
        }
        self.device.sync().expect("device");
        began.elapsed().as_secs_f64()
    }
}

fn run(peer: &str, name: &str, seconds: f64, repeat: usize) -> Result<Value, String> {
    let device = device(peer)?;
    let label = match peer {
        "flex" => "cpu".to_owned(),
        _ => device.identity().map_or_else(|| "unknown".to_owned(), |id| id.name),
    };
    let pair = pair(name)?;
    let mut bench = Bench::new(&pair, device);
    let first: f32 = bench.step().into_scalar();
    // Compiles, autotunes and lets fusion see the same stream of operations a few times.
    let began = Instant::now();
    let mut once = bench.steps(10);
    while began.elapsed().as_secs_f64() < seconds.min(2.0) {
        once = bench.steps(10);
    }
    let chunk = ((0.25 * seconds.min(1.0) / (once / 10.0)) as usize).clamp(1, 1000);
    let mut rates = Vec::new();
    for _ in 0..repeat {
        let (began, mut done) = (Instant::now(), 0);
        while began.elapsed().as_secs_f64() < seconds {
            bench.steps(chunk);
            done += chunk;
        }
        rates.push(done as f64 / began.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let last: f32 = bench.step().into_scalar();
    if !(last < first) {
        return Err(format!("the loss went from {first} to {last}"));
    }
    let threads = std::thread::available_parallelism().map_or(0, usize::from);
    Ok(json!({
        "device": label,
        "steps_per_second": rates[rates.len() / 2],
        "rates": rates,
        "threads": if peer == "flex" { Some(threads) } else { None },
        "loss": [first, last],
    }))
}

fn device(peer: &str) -> Result<Device, String> {
    match peer {
        "flex" => Ok(Device::flex()),
        // burn's own choice of adapter; CUBECL_WGPU_DEFAULT_DEVICE overrides it.
        "wgpu" => Ok(Device::wgpu(DeviceKind::DefaultDevice)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Ok(Device::vulkan(DeviceKind::DefaultDevice)),
        _ => Err(format!("no backend `{peer}` in this build")),
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str, default: &str| {
        let at = args.iter().position(|a| a == name);
        at.and_then(|i| args.get(i + 1)).map_or(default, String::as_str).to_owned()
    };
    let peer = args.first().cloned().unwrap_or_default();
    let name = option("--pair", "hinton");
    let number = |name: &str, default: &str| option(name, default).parse::<f64>();
    let outcome = match (number("--seconds", "3"), number("--repeat", "3")) {
        (Ok(seconds), Ok(repeat)) => {
            let work = (peer.clone(), name.clone());
            catch_unwind(move || run(&work.0, &work.1, seconds, (repeat as usize).max(1)))
                .unwrap_or_else(|_| Err("burn panicked; stderr says where".to_owned()))
        }
        _ => Err("--seconds and --repeat take a number".to_owned()),
    };
    let mut line = json!({ "peer": format!("burn-{peer}"), "version": VERSION, "pair": name });
    let more = outcome.unwrap_or_else(|error| json!({ "error": error }));
    if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
        line.extend(more);
    }
    println!("{line}");
}
