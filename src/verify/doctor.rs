//! `limbeck doctor`: every kernel variant on every adapter of this machine, held to the reference.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::gpu::adapter::{self, AdapterReport};
use crate::gpu::surroundings::Surroundings;
use crate::gpu::{AdapterChoice, Gpu, Plan, Tensor};
use crate::kernels::matmul::Choice;
use crate::kernels::metrics;
use crate::verify::{Case, cases};

/// The version of [`Report`]'s JSON.
pub const SCHEMA_VERSION: u32 = 1;

/// What doctor found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// limbeck's version.
    pub limbeck: &'static str,
    /// Loader, drivers and rights.
    pub surroundings: Surroundings,
    /// Each adapter that was looked at.
    pub adapters: Vec<Examined>,
    /// True where every adapter that was looked at can be relied on.
    pub healthy: bool,
    /// How long it took.
    pub seconds: f64,
}

/// What doctor found on one adapter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Examined {
    /// What it is and can do.
    pub adapter: AdapterReport,
    /// Why it could not be opened, or what the device did while it was looked at.
    pub error: Option<String>,
    /// Timestamps around passes: absent, or whether they count forwards.
    pub timestamps: Option<bool>,
    /// A verdict per kernel.
    pub kernels: Vec<Kernel>,
    /// Members of the matmul family that runs have to avoid here.
    pub avoid: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// What can be said of a kernel, or of one variant of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// All as it should be.
    Pass,
    /// Wrong, but another variant that is right does the same work.
    Avoid,
    /// Wrong, and needed.
    Fail,
}

/// One kernel on one adapter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// Its name.
    pub kernel: Cow<'static, str>,
    /// The worst of its variants.
    pub verdict: Health,
    /// Each of them.
    pub variants: Vec<Variant>,
}

/// One variant of a kernel on one adapter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Variant {
    /// Its name.
    pub variant: String,
    /// Right, avoidable or wrong.
    pub verdict: Health,
    /// Cases that it was run on, twice each.
    pub cases: usize,
    /// The largest error over its bound; at most 1 where the results are right, null where one is
    /// not a finite number.
    #[serde(deserialize_with = "number")]
    pub worst_ratio: f64,
    /// Two runs gave the same bits.
    pub deterministic: bool,
    /// What went wrong first.
    pub fault: Option<String>,
    /// The member of the matmul family that it is: others can stand in for it.
    #[serde(skip)]
    member: Option<Choice>,
}

/// A number, or null for one that JSON cannot say.
fn number<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// Examines the adapter that `choice` (or the environment) names, or else every one, telling `progress`
/// what it turns to.
///
/// # Errors
/// [`Error::Usage`] for an unknown backend; [`Error::NoAdapter`] where nothing matches a name. A machine
/// without any adapter gets its report, whose [`Report::outcome`] is the error.
pub fn run(choice: &AdapterChoice, mut progress: impl FnMut(&str)) -> Result<Report> {
    let began = Instant::now();
    let adapters = adapter::list(choice)?;
    let named = choice.adapter.is_some() || std::env::var("WGPU_ADAPTER_NAME").is_ok_and(|n| !n.is_empty());
    let chosen: Vec<AdapterReport> = adapters.into_iter().filter(|a| a.chosen || !named).collect();
    if chosen.is_empty() && named {
        // Opening fails for the same reason, and says it.
        Gpu::open(choice)?;
    }
    let mut examined = Vec::new();
    for adapter in chosen {
        progress(&adapter.line());
        let this = AdapterChoice { adapter: Some(adapter.index.to_string()), ..choice.clone() };
        // A software driver compiles on one thread per device, and compiling is what takes long.
        let devices = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
        examined.push(match (0..devices).map(|_| Gpu::open(&this)).collect::<Result<Vec<_>>>() {
            Ok(gpus) => examine(&gpus, &cases::short()),
            Err(e) => Examined::broken(adapter, &e),
        });
    }
    Ok(Report::new(examined, began))
}

/// Runs the cases on an adapter, shared out among devices that were opened on it: each variant on one.
pub fn examine(gpus: &[Gpu], cases: &[Case]) -> Examined {
    let began = Instant::now();
    let gpu = &gpus[0];
    let mut groups: BTreeMap<(&'static str, String), Vec<&Case>> = BTreeMap::new();
    for case in cases.iter().filter(|c| c.runs_on(gpu)) {
        groups.entry((case.kernel(), case.variant())).or_default().push(case);
    }
    let mut longest_last: Vec<Vec<&Case>> = groups.into_values().collect();
    longest_last.sort_by_key(Vec::len);
    let (waiting, done) = (Mutex::new(longest_last), Mutex::new(Vec::new()));
    let next = || waiting.lock().ok()?.pop();
    std::thread::scope(|scope| {
        for gpu in gpus {
            scope.spawn(|| {
                while let Some(group) = next() {
                    let variant = Variant::examined(gpu, &group);
                    if let Ok(mut done) = done.lock() {
                        done.push((group[0].kernel(), variant));
                    }
                }
            });
        }
    });
    let mut kernels: BTreeMap<&'static str, Vec<Variant>> = BTreeMap::new();
    for (kernel, variant) in done.into_inner().unwrap_or_default() {
        kernels.entry(kernel).or_default().push(variant);
    }
    let kernels: Vec<Kernel> = kernels.into_iter().map(|(kernel, v)| Kernel::new(kernel, v)).collect();
    let avoided = kernels.iter().flat_map(|k| &k.variants).filter(|v| v.verdict == Health::Avoid);
    let avoid = avoided.map(|v| v.variant.clone()).collect();
    let (timestamps, fault) = match timestamps(gpu) {
        Ok(found) => (found, None),
        Err(e) => (None, Some(e.to_string())),
    };
    let lost = || gpus.iter().find_map(|gpu| gpu.check().err()).map(|e| e.to_string());
    Examined {
        adapter: gpu.report.clone(),
        error: fault.or_else(lost),
        timestamps,
        avoid,
        kernels,
        seconds: began.elapsed().as_secs_f64(),
    }
}

impl Variant {
    /// The variant that all of the cases are of, after them.
    fn examined(gpu: &Gpu, cases: &[&Case]) -> Self {
        let mut variant = Self {
            variant: cases[0].variant(),
            verdict: Health::Pass,
            cases: 0,
            worst_ratio: 0.0,
            deterministic: true,
            fault: None,
            member: cases[0].member(),
        };
        cases.iter().for_each(|case| variant.examine(gpu, case));
        variant
    }

    fn examine(&mut self, gpu: &Gpu, case: &Case) {
        self.cases += 1;
        let (first, second) = match (case.check(gpu), case.check(gpu)) {
            (Ok(first), Ok(second)) => (first, second),
            (Err(e), _) | (_, Err(e)) => return self.blame(e.to_string()),
        };
        for verdict in [&first, &second] {
            self.worst_ratio = self.worst_ratio.max(verdict.worst.ratio);
            if !verdict.passes() {
                self.blame(verdict.to_string());
            }
        }
        if first.digest != second.digest {
            self.deterministic = false;
            self.blame(format!("two runs differ: {}", first.case));
        }
    }

    fn blame(&mut self, fault: String) {
        self.verdict = Health::Fail;
        self.fault.get_or_insert(fault);
    }
}

impl Kernel {
    fn new(kernel: &'static str, mut variants: Vec<Variant>) -> Self {
        variants.sort_by(|a, b| a.variant.cmp(&b.variant));
        // The smallest tile of a shader was seen with every epilogue and speaks for its other tiles.
        let shader = |v: &Variant| v.member.map(|m| m.variant.kernel.name);
        let speaks = |v: &&Variant| v.member.is_some_and(|m| cases::SMALLEST.contains(&m.text().as_str()));
        for wrong in variants.clone().iter().filter(speaks).filter(|v| v.verdict == Health::Fail) {
            for v in variants.iter_mut().filter(|v| shader(v) == shader(wrong)) {
                v.blame(format!("the same shader as {}", wrong.variant));
            }
        }
        // A member that does not split K can do all of the family's work.
        let whole = |v: &Variant| v.member.is_some_and(|m| m.splits == 1) && v.verdict == Health::Pass;
        if variants.iter().any(whole) {
            let wrong = variants.iter_mut().filter(|v| v.verdict == Health::Fail);
            wrong.for_each(|v| v.verdict = Health::Avoid);
        }
        let verdict = variants.iter().map(|v| v.verdict).max().unwrap_or(Health::Fail);
        Self { kernel: kernel.into(), verdict, variants }
    }

    fn worst_ratio(&self) -> f64 {
        self.variants.iter().fold(0.0, |worst, v| worst.max(v.worst_ratio))
    }
}

impl Examined {
    fn broken(adapter: AdapterReport, error: &Error) -> Self {
        Self {
            adapter,
            error: Some(error.to_string()),
            timestamps: None,
            kernels: Vec::new(),
            avoid: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Whether runs can rely on this adapter.
    pub fn healthy(&self) -> bool {
        self.error.is_none()
            && !self.kernels.is_empty()
            && self.timestamps != Some(false)
            && self.kernels.iter().all(|k| k.verdict != Health::Fail)
    }
}

impl Report {
    fn new(adapters: Vec<Examined>, began: Instant) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            limbeck: env!("CARGO_PKG_VERSION"),
            surroundings: Surroundings::look(),
            healthy: !adapters.is_empty() && adapters.iter().all(Examined::healthy),
            adapters,
            seconds: began.elapsed().as_secs_f64(),
        }
    }

    /// Takes in what another process found.
    pub fn add(&mut self, adapters: Vec<Examined>) {
        self.healthy &= adapters.iter().all(Examined::healthy);
        self.seconds += adapters.iter().map(|a| a.seconds).sum::<f64>();
        self.adapters.extend(adapters);
    }

    /// The command's outcome.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] where none could be opened; [`Error::Run`] where a needed kernel is wrong.
    pub fn outcome(&self) -> Result<()> {
        if self.adapters.iter().all(|a| a.kernels.is_empty()) {
            let found = &self.surroundings;
            let errors: Vec<&str> = self.adapters.iter().filter_map(|a| a.error.as_deref()).collect();
            let what = match errors.is_empty() {
                true => format!("the system offers none ({found})"),
                false => format!("{} ({found})", errors.join("; ")),
            };
            return Err(Error::NoAdapter { what, hint: found.advice() });
        }
        let bad: Vec<String> =
            self.adapters.iter().filter(|a| !a.healthy()).map(Examined::complaint).collect();
        match bad.is_empty() {
            true => Ok(()),
            false => Err(Error::Run(bad.join("; "))),
        }
    }
}

impl Examined {
    fn complaint(&self) -> String {
        let failed: Vec<&str> =
            self.kernels.iter().filter(|k| k.verdict == Health::Fail).map(|k| &*k.kernel).collect();
        let what = match (&self.error, failed.is_empty()) {
            (Some(error), _) => error.clone(),
            (None, false) => format!("wrong results from {}", failed.join(", ")),
            (None, true) => "its timestamps run backwards".to_owned(),
        };
        format!("{}: {what}", self.adapter.name)
    }
}

/// Screens the members of the matmul family on short sums, and tells the device to avoid those that are wrong on it.
/// Gives their names, for the run to say that it avoids them.
///
/// # Errors
/// [`Error::Run`] where no member is right; [`Error::Device`] where the device is lost.
pub fn screen(gpu: &Gpu) -> Result<Vec<String>> {
    let matmuls: Vec<Case> =
        cases::short().into_iter().filter(|c| c.member().is_some() && c.is_quick()).collect();
    let found = examine(std::slice::from_ref(gpu), &matmuls);
    gpu.check()?;
    if !found.healthy() {
        return Err(Error::Run(found.complaint()));
    }
    found.avoid.iter().for_each(|member| gpu.avoid(member));
    Ok(found.avoid)
}

/// Whether timestamps around a pass count forwards, where the device has them.
fn timestamps(gpu: &Gpu) -> Result<Option<bool>> {
    let stats = Tensor::zeros(gpu, "stats", [1, 64 * 64, metrics::WIDTH])?;
    let sums = Tensor::zeros(gpu, "metrics", [1, 64, metrics::WIDTH])?;
    let mut plan = Plan::new(gpu);
    metrics::record(&mut plan, "doctor.timestamps", &stats, &sums)?;
    let times = plan.finish()?.profile_blocking(gpu)?;
    Ok(times.map(|t| t.iter().all(|ns| *ns > 0.0)))
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "limbeck {}, {}", self.limbeck, self.surroundings)?;
        self.adapters.iter().try_for_each(|a| write!(f, "\n{a}"))?;
        let verdict = if self.healthy { "all is well" } else { "something is wrong" };
        writeln!(f, "\n{verdict} ({:.1} s)", self.seconds)
    }
}

impl std::fmt::Display for Examined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let a = &self.adapter;
        writeln!(f, "{}: {}", a.index, a.line())?;
        if let Some(error) = &self.error {
            writeln!(f, "   error: {error}")?;
        }
        let lanes = match a.subgroup {
            _ if !a.subgroups => "none".to_owned(),
            [low, high] if low == high => format!("{low} lanes"),
            [low, high] => format!("{low} to {high} lanes"),
        };
        let times = match self.timestamps {
            None => "none",
            Some(true) => "work",
            Some(false) => "run backwards",
        };
        let f16 = if a.f16 { "yes" } else { "no" };
        writeln!(f, "   subgroups {lanes}, timestamps {times}, f16 {f16}")?;
        for kernel in &self.kernels {
            let cases: usize = kernel.variants.iter().map(|v| v.cases).sum();
            writeln!(
                f,
                "   {:8} {}  {} variants, {cases} cases twice, worst error {:.2} of its bound",
                kernel.kernel,
                match kernel.verdict {
                    Health::Pass => "ok   ",
                    Health::Avoid => "avoid",
                    Health::Fail => "WRONG",
                },
                kernel.variants.len(),
                kernel.worst_ratio()
            )?;
            for v in kernel.variants.iter().filter(|v| v.verdict != Health::Pass) {
                let fault = v.fault.as_deref().unwrap_or_default();
                writeln!(f, "            {}: {fault}", v.variant)?;
            }
        }
        for member in &self.avoid {
            writeln!(f, "   {member} is wrong here; runs avoid it: other members do its work")?;
        }
        Ok(())
    }
}
