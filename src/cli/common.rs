//! Options that several commands share, and what they turn into.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::cli::options::CALL;
use crate::cli::regularize::RegularizeArgs;
use crate::cli::teachers::ForeignArgs;
use crate::data::{Dataset, Split};
use crate::distill::step::{Guard, Optimizer};
use crate::distill::step_flops;
use crate::error::{Error, Result};
use crate::gpu::environment::Load;
use crate::gpu::{AdapterChoice, Gpu};
use crate::kernels::adam::Adam;
use crate::kernels::matmul::Activation;
use crate::mlp::weights::{Initializer, Model, SaveOptions, StoredType, Weights, check_sizes};
use crate::train::run_dir::{self, Begin};
use crate::train::schedule::{Schedule, Schedules};
use crate::train::{Length, Recipe};
use crate::verify::doctor::screen;

/// Runs limbeck with these arguments in a process of its own, for what drivers are told when they are loaded; it speaks
/// on our stderr.
///
/// # Errors
/// Where it cannot be started.
pub fn in_another_process(
    args: &[&str],
    device: &DeviceArgs,
    told: Option<(&str, &str)>,
) -> std::io::Result<std::process::Output> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(args).args(device.given()).envs(told).stderr(std::process::Stdio::inherit()).output()
}

#[derive(Args, Clone)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// Adapter to use: an index of `limbeck devices`, or a part of its name.
    #[arg(long, value_name = "INDEX|NAME", env = "WGPU_ADAPTER_NAME", global = true)]
    adapter: Option<String>,
    /// Graphics API: vulkan, metal or dx12.
    #[arg(long, value_name = "API", env = "WGPU_BACKEND", global = true)]
    backend: Option<String>,
    /// Kernel choices that `limbeck tune` measured on this device, instead of the built-in ones.
    #[arg(long, value_name = "FILE", global = true)]
    profile: Option<PathBuf>,
    /// Hold the matmul variants to the reference first, and avoid those that are wrong on this device.
    #[arg(long, global = true)]
    screen: bool,
}

impl DeviceArgs {
    pub fn choice(&self) -> AdapterChoice {
        AdapterChoice {
            adapter: self.adapter.clone(),
            backend: self.backend.clone(),
            profile: self.profile.clone(),
            checked: false,
        }
    }

    /// The same for another adapter.
    pub fn on(&self, index: usize) -> Self {
        Self { adapter: Some(index.to_string()), ..self.clone() }
    }

    /// The options as they were given.
    pub fn given(&self) -> Vec<OsString> {
        let text = |v: &Option<String>| v.as_ref().map(OsString::from);
        let profile = self.profile.as_ref().map(OsString::from);
        let valued =
            [("--adapter", text(&self.adapter)), ("--backend", text(&self.backend)), ("--profile", profile)];
        let mut all: Vec<OsString> = self.screen.then(|| "--screen".into()).into_iter().collect();
        for (name, value) in valued {
            all.extend(value.into_iter().flat_map(|v| [name.into(), v]));
        }
        all
    }

    /// Opens the device and says on stderr which one it is.
    pub fn open(&self, quiet: bool) -> Result<Gpu> {
        let gpu = Gpu::open(&self.choice())?;
        if !quiet {
            eprintln!("adapter: {}", gpu.report.line());
        }
        if self.screen {
            let avoided = screen(&gpu)?;
            if !avoided.is_empty() {
                eprintln!("avoiding {}, wrong on this device: see `limbeck doctor`", avoided.join(", "));
            }
        }
        Ok(gpu)
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum ActivationName {
    /// max(x, 0)
    Relu,
    /// Hyperbolic tangent.
    Tanh,
    /// Gaussian error linear unit, tanh form.
    Gelu,
}

impl From<ActivationName> for Activation {
    fn from(name: ActivationName) -> Self {
        match name {
            ActivationName::Relu => Self::Relu,
            ActivationName::Tanh => Self::Tanh,
            ActivationName::Gelu => Self::Gelu,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OptimizerName {
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Adam; weight decay acts through the gradient.
    Adam,
    /// Adam with decoupled weight decay.
    Adamw,
    /// Adam with Keras's place for epsilon: before the second moment is corrected.
    KerasAdam,
}

#[derive(Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// Layer sizes, inputs first, classes last, such as 784,1200,1200,10.
    #[arg(long, value_delimiter = ',', required = true, value_name = "SIZES")]
    pub layers: Vec<usize>,
    /// Activation of the hidden layers [default: relu, or that of --init].
    #[arg(long, value_enum)]
    activation: Option<ActivationName>,
    /// Start from the weights in this safetensors file instead of fresh ones.
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
}

impl NetworkArgs {
    /// The network that training starts from, and its normalisation where it has one.
    pub fn start(&self, foreign: &ForeignArgs, data: &Dataset, seed: u64) -> Result<Model> {
        self.start_as(&self.layers, foreign, data, seed)
    }

    /// The same with other layers than its own.
    pub fn start_as(
        &self,
        layers: &[usize],
        foreign: &ForeignArgs,
        data: &Dataset,
        seed: u64,
    ) -> Result<Model> {
        check_sizes(layers)?;
        crate::distill::infer::check_inputs(layers, data)
            .map_err(|e| e.with_hint(format!("the first of --layers must be {}", data.features())))?;
        let classes = layers.last().copied().unwrap_or(0);
        if classes < data.classes {
            return Err(Error::usage(
                "layers",
                format!("at least {} outputs, the data's classes", data.classes),
                format!("{classes} outputs"),
            ));
        }
        let activation = self.activation.map(Activation::from);
        if let Some(path) = &self.init {
            return foreign.load_as(path, activation, Some(layers.to_vec()));
        }
        let activation = activation.unwrap_or(Activation::Relu);
        let how = match activation {
            Activation::Tanh => Initializer::Glorot,
            _ => Initializer::He,
        };
        let weights = Weights::init(layers, activation, how, seed)?;
        Ok(Model { weights, normalisation: None, class_names: None, activation_known: true })
    }
}

#[derive(Args)]
#[command(next_help_heading = "Training")]
pub struct TrainingArgs {
    /// Passes over the training rows [default: 10].
    #[arg(long, conflicts_with = "steps")]
    epochs: Option<u64>,
    /// Optimiser steps, instead of --epochs.
    #[arg(long)]
    steps: Option<u64>,
    /// Rows per step.
    #[arg(long, default_value_t = 128)]
    pub batch_size: usize,
    /// Make each step as N micro-batches whose gradients add up, for a batch that memory does not hold.
    #[arg(long, default_value_t = 1, value_name = "N")]
    accumulate: usize,
    /// Optimiser [default: adam, or that of --preset].
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerName>,
    /// Learning rate.
    #[arg(long, default_value_t = 1e-3)]
    pub lr: f64,
    /// How the learning rate changes: [warmup:STEPS,] and constant, linear[:END[:STEPS]],
    /// cosine[:END[:STEPS]], exponential:END[:STEPS] or step:FACTOR:STEPS.
    #[arg(long, value_name = "SCHEDULE")]
    lr_schedule: Option<Schedule>,
    /// Momentum of sgd.
    #[arg(long, default_value_t = 0.9)]
    momentum: f64,
    /// How sgd's momentum changes; as --lr-schedule.
    #[arg(long, value_name = "SCHEDULE")]
    momentum_schedule: Option<Schedule>,
    /// Nesterov's form of sgd's momentum.
    #[arg(long)]
    nesterov: bool,
    /// Weight decay.
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Decay of Adam's first moment.
    #[arg(long, default_value_t = 0.9)]
    beta1: f64,
    /// Decay of Adam's second moment.
    #[arg(long, default_value_t = 0.999)]
    beta2: f64,
    /// Adam's epsilon [default: 1e-8, of keras-adam 1e-7].
    #[arg(long)]
    epsilon: Option<f64>,
    /// Seed of weights, order, splits and what is drawn in a step.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Take the rows in file order instead of a new order each epoch.
    #[arg(long)]
    no_shuffle: bool,
    /// Hold this share of the training rows back and evaluate on it after every epoch.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    validation: f64,
    #[command(flatten)]
    regularize: RegularizeArgs,
}

impl TrainingArgs {
    /// Of a step, or micro-batch, of `replicas` students under teachers of `asked` weights.
    pub fn load(&self, asked: f64, layers: &[usize], replicas: usize) -> Load {
        let rows = self.batch_size / self.accumulate.max(1);
        Load::of(replicas, |replicas| step_flops(asked, layers, replicas, rows))
    }

    pub fn schedules(&self) -> Schedules {
        Schedules {
            lr: self.lr_schedule.unwrap_or_default(),
            momentum: self.momentum_schedule.unwrap_or_default(),
            ..Schedules::default()
        }
    }

    pub fn recipe(&self, log_every: u64) -> Result<Recipe> {
        self.recipe_with(OptimizerName::Adam, log_every)
    }

    /// The same where another optimiser is usual.
    pub fn recipe_with(&self, usual: OptimizerName, log_every: u64) -> Result<Recipe> {
        let share = |name: &str, v: f64| match (0.0..1.0).contains(&v) {
            true => Ok(v),
            false => Err(Error::usage(name, "at least 0 and below 1", v.to_string())),
        };
        let not_negative = |name: &str, v: f64| match v >= 0.0 && v.is_finite() {
            true => Ok(v),
            false => Err(Error::usage(name, "a number of at least 0", v.to_string())),
        };
        // At 0 a parameter that never had a gradient would become 0 / 0.
        let above_zero = |name: &str, v: f64| match v > 0.0 && v.is_finite() {
            true => Ok(v),
            false => Err(Error::usage(name, "a number above 0", v.to_string())),
        };
        let weight_decay = not_negative("--weight-decay", self.weight_decay)?;
        let adam = |decoupled, epsilon| -> Result<Adam> {
            Ok(Adam {
                beta_1: share("--beta1", self.beta1)?,
                beta_2: share("--beta2", self.beta2)?,
                epsilon: above_zero("--epsilon", self.epsilon.unwrap_or(epsilon))?,
                weight_decay,
                decoupled,
            })
        };
        let optimizer = match self.optimizer.unwrap_or(usual) {
            OptimizerName::Sgd => Optimizer::Sgd {
                momentum: share("--momentum", self.momentum)?,
                nesterov: self.nesterov,
                weight_decay,
            },
            OptimizerName::Adam => Optimizer::Adam(adam(false, 1e-8)?),
            OptimizerName::Adamw => Optimizer::Adam(adam(true, 1e-8)?),
            OptimizerName::KerasAdam => Optimizer::KerasAdam(adam(false, 1e-7)?),
        };
        for (name, value) in [("--batch-size", self.batch_size as u64), ("--log-every", log_every)] {
            if value == 0 {
                return Err(Error::usage(name, "at least 1", "0"));
            }
        }
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return Err(Error::usage("--lr", "a number above 0", self.lr.to_string()));
        }
        share("--validation", self.validation)?;
        let length = match (self.steps, self.epochs) {
            (Some(n), _) => Length::Steps(n),
            (None, n) => Length::Epochs(n.unwrap_or(10)),
        };
        if matches!(length, Length::Steps(0) | Length::Epochs(0)) {
            return Err(Error::usage("--epochs or --steps", "at least 1", "0"));
        }
        let (batch, shuffle, guard) = (self.batch_size, !self.no_shuffle, Guard::default());
        let (accumulate, regularize) = (self.accumulate, self.regularize.regularize()?);
        let features = Vec::new();
        let recipe =
            Recipe { batch, accumulate, length, optimizer, shuffle, log_every, guard, features, regularize };
        recipe.check()?;
        Ok(recipe)
    }

    /// Holds validation rows back where asked for.
    pub fn split(&self, split: Split) -> Result<Split> {
        match self.validation > 0.0 {
            true => split.hold_out(self.validation, self.seed),
            false => Ok(split),
        }
    }
}

#[derive(Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Folder for the run: its model, metrics, record and checkpoints.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Steps per line of metrics.jsonl.
    #[arg(long, default_value_t = 100, value_name = "STEPS")]
    pub log_every: u64,
    #[command(flatten)]
    pub form: FormArgs,
    #[command(flatten)]
    pub call: CallArgs,
}

/// What concerns the call and not the run: not kept in the run's config.toml, not taken from a file.
#[derive(Args)]
#[command(next_help_heading = CALL)]
pub struct CallArgs {
    /// Take options from this TOML file; what the command line says wins. See `limbeck config`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overwrite the run that --out already holds.
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// Go on with the run in --out from its newest checkpoint; without --config, with its options.
    #[arg(long)]
    resume: bool,
    /// After a fault of the device, open it again and go on from the last checkpoint, up to N times.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub retry_device: u32,
    /// Print the result as one JSON object and no progress.
    #[arg(long)]
    pub json: bool,
}

/// The form of a model file.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub struct FormArgs {
    /// How the model's numbers are stored.
    #[arg(long, value_enum, default_value = "f32", value_name = "TYPE")]
    dtype: TypeName,
    /// Keras's names and [in, out] kernels instead of PyTorch's.
    #[arg(long)]
    keras_layout: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum TypeName {
    F32,
    F16,
    Bf16,
}

impl From<TypeName> for StoredType {
    fn from(name: TypeName) -> Self {
        match name {
            TypeName::F32 => Self::F32,
            TypeName::F16 => Self::F16,
            TypeName::Bf16 => Self::Bf16,
        }
    }
}

impl FormArgs {
    pub fn options(&self) -> SaveOptions {
        SaveOptions { dtype: self.dtype.into(), keras: self.keras_layout }
    }
}

impl CallArgs {
    /// What to do with the run that a folder holds.
    pub fn begin(&self) -> Begin {
        match (self.force, self.resume) {
            (true, _) => Begin::Force,
            (_, true) => Begin::Resume,
            _ => Begin::New,
        }
    }
}

impl OutputArgs {
    /// Makes sure that nothing would be overwritten; makes nothing yet.
    pub fn check(&self, model: &str) -> Result<()> {
        run_dir::check(&self.out, model, self.call.begin())
    }

    /// The folder, made if need be.
    pub fn create(&self) -> Result<&Path> {
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io("create", &self.out, e))?;
        Ok(&self.out)
    }
}

/// Refuses to overwrite a file unless told to.
pub fn refuse_existing(option: &str, path: &Path, force: bool) -> Result<()> {
    if path.exists() && !force {
        return Err(Error::usage(option, "a new file", format!("{} exists", path.display()))
            .with_hint("choose another name, or overwrite with --force"));
    }
    Ok(())
}
