//! A whole distillation step, end to end and dispatch by dispatch.

use std::borrow::Cow;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::bench::{REPEATS, Record, Times, peak::Peak};
use crate::data::{Dataset, Elements};
use crate::distill::Feed;
use crate::distill::step::{Guard, Loss, Micro, Optimizer, Step, Teacher};
use crate::distill::step_flops;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::environment::Load;
use crate::gpu::program::SLOTS;
use crate::gpu::readback::Flights;
use crate::kernels::adam::Adam;
use crate::kernels::matmul::Activation;
use crate::mlp::Mlp;
use crate::mlp::weights::{Initializer, Weights};

/// A teacher and a student.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// `hinton` or `small`.
    pub name: &'static str,
    /// Teacher layers.
    pub teacher: &'static [usize],
    /// Student layers.
    pub student: &'static [usize],
    /// Rows per step.
    pub batch: usize,
    /// Students side by side.
    pub replicas: usize,
}

/// The measured pairs.
pub const PAIRS: &[Pair] = &[
    // The paper's networks: matrix products decide.
    Pair {
        name: "hinton",
        teacher: &[784, 1200, 1200, 10],
        student: &[784, 800, 800, 10],
        batch: 128,
        replicas: 1,
    },
    // Digits of 8x8: dispatches decide.
    Pair { name: "small", teacher: &[64, 128, 128, 10], student: &[64, 32, 10], batch: 64, replicas: 1 },
    // Sixteen such students in one run.
    Pair { name: "small-x16", teacher: &[64, 128, 128, 10], student: &[64, 32, 10], batch: 64, replicas: 16 },
];

/// Rows of the data set that the steps walk.
const ROWS: usize = 4096;
const LOSS: Loss = Loss { temperature: 4.0, hard_weight: 0.1, soft_weight: 0.9, ..Loss::HARD };
const ADAM: Adam = Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.0, decoupled: false };

impl Pair {
    /// The same with so many of its students.
    pub fn with(&self, replicas: usize) -> Self {
        Self { replicas, ..*self }
    }

    /// Of a step.
    pub fn load(&self) -> Load {
        Load::of(self.replicas, |replicas| self.with(replicas).flops())
    }

    /// FLOPs of a step.
    pub fn flops(&self) -> f64 {
        let asked = self.teacher.windows(2).map(|s| (s[0] * s[1]) as f64).sum();
        step_flops(asked, self.student, self.replicas, self.batch)
    }
}

/// The pairs of these names, all for none.
pub fn pairs(names: &[String]) -> impl Iterator<Item = &'static Pair> {
    PAIRS.iter().filter(move |p| names.is_empty() || names.iter().any(|n| n == p.name))
}

/// A pair's step, recorded.
pub struct Bench<'a> {
    gpu: &'a Gpu,
    pair: Pair,
    step: Step,
    done: u64,
    // The step reads these; they live as long as it does.
    _feed: Feed<'static>,
}

impl<'a> Bench<'a> {
    /// Puts networks and random rows on the device.
    ///
    /// # Errors
    /// [`Error::Device`] where they do not fit.
    pub fn new(gpu: &'a Gpu, pair: Pair) -> Result<Self> {
        let features = pair.teacher[0];
        let pixels =
            crate::bench::values(5, ROWS * features).iter().map(|v| (128.0 + 127.0 * v) as u8).collect();
        let labels = (0..ROWS).map(|i| (i % 10) as u32).collect();
        let data = Dataset::new("bench", Elements::U8(pixels), vec![features], Some(labels), Some(10))?;
        let feed = Feed::resident(gpu, &data, None, 1, ROWS)?;
        feed.order.write(gpu, &crate::rng::permutation(0, 0, ROWS as u32))?;
        let network = |sizes: &[usize], seed| Weights::init(sizes, Activation::Relu, Initializer::He, seed);
        let teacher = Teacher::Live(Mlp::upload(gpu, "teacher", &[network(pair.teacher, 99)?])?);
        let students =
            (0..pair.replicas as u64).map(|seed| network(pair.student, seed)).collect::<Result<Vec<_>>>()?;
        let optimizer = Optimizer::Adam(ADAM);
        let guard = Guard::default();
        let micro = Micro { rows: pair.batch, count: 1 };
        let step = Step::record(
            gpu,
            &feed,
            &teacher,
            LOSS.soft.into(),
            &students,
            optimizer,
            guard,
            Default::default(),
            micro,
        )?;
        Ok(Self { gpu, pair, step, done: 0, _feed: feed })
    }

    fn scalars(&self, steps: u32) -> Vec<crate::kernels::step::Step> {
        let per_epoch = ROWS / self.pair.batch;
        (0..u64::from(steps))
            .flat_map(|s| {
                let t = self.done + s;
                let start = (t % per_epoch as u64) as usize * self.pair.batch;
                let one = self.step.scalars(t + 1, start, self.pair.batch, 1e-4, &LOSS);
                vec![one; self.pair.replicas]
            })
            .collect()
    }

    /// Runs about `seconds` of training as a run does, with metrics coming back, and gives the
    /// seconds per step.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost.
    pub fn train(&mut self, seconds: f64, per_submission: u32) -> Result<f64> {
        let mut flights = Flights::<()>::default();
        self.gpu.wait_blocking()?;
        let (began, first) = (Instant::now(), self.done);
        while began.elapsed().as_secs_f64() < seconds {
            let scalars = self.scalars(per_submission);
            self.step.submit(self.gpu, &mut flights, &scalars, ())?;
            self.done += u64::from(per_submission);
            flights.arrived(self.gpu, false)?;
        }
        flights.arrived(self.gpu, true)?;
        Ok(began.elapsed().as_secs_f64() / (self.done - first) as f64)
    }

    /// Seconds of the host's thread for each dispatch of a full submission: scalars, encoding, submission.
    /// The device is idle, so that nothing is waited for.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost.
    pub fn encode(&mut self) -> Result<f64> {
        let mut seconds = Vec::new();
        for _ in 0..REPEATS {
            self.gpu.wait_blocking()?;
            let (mut flights, scalars) = (Flights::<()>::default(), self.scalars(SLOTS));
            let began = Instant::now();
            self.step.submit(self.gpu, &mut flights, &scalars, ())?;
            seconds.push(began.elapsed().as_secs_f64());
            self.done += u64::from(SLOTS);
            flights.arrived(self.gpu, true)?;
        }
        let dispatches = SLOTS as usize * self.step.program().len();
        Ok(Times::of(seconds).median / dispatches as f64)
    }

    /// Where the time of one step goes; `None` without timestamps.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is lost.
    pub fn profile(&self, peak: &Peak) -> Result<Option<Vec<DispatchTime>>> {
        self.step.prepare(self.gpu, &self.scalars(1))?;
        let mut runs = Vec::new();
        for _ in 0..9 {
            match self.step.program().profile_blocking(self.gpu)? {
                Some(run) => runs.push(run),
                None => return Ok(None),
            }
        }
        let rows = self.step.program().dispatches().enumerate().map(|(i, (label, kernel, work))| {
            let times = Times::of(runs.iter().map(|r| r[i] * 1e-3).collect());
            let floor = (work.flops / peak.flops).max(work.bytes / peak.bytes);
            DispatchTime {
                label: label.to_owned(),
                kernel: kernel.into(),
                us: times.median,
                floor_us: 1e6 * floor,
            }
        });
        Ok(Some(rows.collect()))
    }
}

/// One dispatch of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DispatchTime {
    /// `student.l1.matmul`
    pub label: String,
    /// The shader.
    pub kernel: Cow<'static, str>,
    /// Median microseconds, by the device's timestamps.
    pub us: f64,
    /// The least that its FLOPs at the FMA peak or its bytes at the copy bandwidth would take.
    pub floor_us: f64,
}

/// Steps per second of pairs, as many students to a device as in a run. `square` measures the 1024^3 rate in
/// FLOP/s, which like the peak is of one device: between the steps, since a busy machine changes its pace.
///
/// # Errors
/// [`Error::Run`] where a step goes wrong; [`Error::Device`].
pub fn run(gpu: &Gpu, peak: &Peak, square: impl Fn() -> Result<f64>, pairs: &[&Pair]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for &pair in pairs {
        let share = gpu.share(pair.replicas);
        let others: Vec<Gpu> =
            (share..pair.replicas).step_by(share).map(|_| gpu.beside()).collect::<Result<_>>()?;
        let devices: Vec<&Gpu> = std::iter::once(gpu).chain(&others).collect();
        let parts = devices.iter().enumerate().map(|(i, device)| {
            let mut bench = Bench::new(device, pair.with(share.min(pair.replicas - i * share)))?;
            bench.check()?;
            // As a run paces itself: about 50 ms to a submission.
            bench.train(0.2, 4)?;
            let once = bench.train(0.2, 4)?;
            Ok((bench, (0.05 / once).ceil().clamp(1.0, f64::from(SLOTS)) as u32))
        });
        let mut parts = parts.collect::<Result<Vec<_>>>()?;
        let work = pair.flops();
        let each = work / devices.len() as f64;
        let (mut seconds, mut fractions) = (Vec::new(), Vec::new());
        let mut before = square()?;
        for _ in 0..5 {
            let step = train_all(&mut parts)?;
            let after = square()?;
            seconds.push(step);
            fractions.push(each / (step * 0.5 * (before + after)));
            before = after;
        }
        let times = Times::of(seconds);
        let mut record = times.record("step", &format!("batch-{}", pair.batch), pair.name, work, 0.0);
        record.devices = Some(devices.len());
        record.fraction_of_peak = Some(each / times.median / peak.flops);
        record.fraction_of_matmul = Some(Times::of(fractions).median);
        record.host_us_per_dispatch = Some(1e6 * parts[0].0.encode()?);
        record.steps_per_second = Some(pair.replicas as f64 / times.median);
        records.push(record);
    }
    Ok(records)
}

/// Trains on all devices at once, with so many steps to a submission, and gives the seconds that a step of all
/// students takes.
fn train_all(parts: &mut [(Bench<'_>, u32)]) -> Result<f64> {
    let students: usize = parts.iter().map(|(bench, _)| bench.pair.replicas).sum();
    let rates = std::thread::scope(|scope| {
        let train = |(bench, per_submission): &mut (Bench<'_>, u32)| {
            Ok(bench.pair.replicas as f64 / bench.train(0.6, *per_submission)?)
        };
        let (first, others) = parts.split_at_mut(1);
        let others: Vec<_> = others.iter_mut().map(|part| scope.spawn(move || train(part))).collect();
        let first = train(&mut first[0]);
        let others = others.into_iter().map(|h| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        std::iter::once(first).chain(others).collect::<Result<Vec<f64>>>()
    })?;
    Ok(students as f64 / rates.iter().sum::<f64>())
}

impl Bench<'_> {
    /// Before timing: the first step's losses and gradients are finite and the loss falls.
    fn check(&mut self) -> Result<()> {
        let mut flights = Flights::<()>::default();
        let scalars = self.scalars(SLOTS);
        self.step.submit(self.gpu, &mut flights, &scalars, ())?;
        self.done += u64::from(SLOTS);
        let rows = flights.arrived(self.gpu, true)?;
        let raw = &rows.first().ok_or_else(|| Error::Run("no metrics came back".to_owned()))?.1;
        let loss = |slot| {
            let tally = self.step.tally(raw, slot, 0, self.pair.batch as u32);
            LOSS.hard_weight * f64::from(tally.hard_loss) + LOSS.soft_weight * f64::from(tally.soft_loss)
        };
        let (first, last) = (loss(0), loss(SLOTS as usize - 1));
        match last < first {
            true => Ok(()),
            false => Err(Error::Run(format!(
                "{}: the loss went from {first} to {last} in {SLOTS} steps",
                self.pair.name
            ))),
        }
    }
}
