//! What is taught, by whom and how: the options that `distill` and `sweep` share, and what they read.

use std::sync::Arc;

use crate::cli::common::{NetworkArgs, OptimizerName, TrainingArgs};
use crate::cli::data::{DataArgs, TrainRowsArgs, TransferArgs};
use crate::cli::keep::GuardArgs;
use crate::cli::loss::{LossArgs, warn_of_labels};
use crate::cli::teachers::{ForeignArgs, TeacherArgs};
use crate::data::{Dataset, Split};
use crate::distill::logits::{Logits, Wanted};
use crate::distill::step::Loss;
use crate::error::{Error, Result};
use crate::gpu::environment::Load;
use crate::mlp::weights::Model;
use crate::train::Recipe;
use crate::train::schedule::Schedules;

#[derive(clap::Args)]
pub struct LessonArgs {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    pub rows: TrainRowsArgs,
    #[command(flatten)]
    transfer: TransferArgs,
    #[command(flatten)]
    pub teacher: TeacherArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
    #[command(flatten)]
    pub loss: LossArgs,
    #[command(flatten)]
    pub network: NetworkArgs,
    #[command(flatten)]
    pub training: TrainingArgs,
    #[command(flatten)]
    guard: GuardArgs,
}

/// What a run needs that no device is needed for.
pub struct Prepared {
    pub split: Split,
    /// The validation rows, if any, were held back from the training rows.
    pub held_out: bool,
    pub models: Vec<Model>,
    /// Teachers' logits on disk, of the rows that are walked and of the test rows.
    pub cached: Arc<[Vec<Logits>; 2]>,
    pub start: Model,
}

impl LessonArgs {
    /// About, of a step of `replicas` students: no file is opened for it.
    pub fn load(&self, layers: &[usize], replicas: usize) -> Load {
        self.training.load(self.teacher.bytes() as f64 / 4.0, layers, replicas)
    }

    pub fn recipe(&self, log_every: u64) -> Result<Recipe> {
        let usual = self.loss.optimizer().unwrap_or(OptimizerName::Adam);
        let recipe = self.training.recipe_with(usual, log_every)?;
        let recipe = Recipe { guard: self.guard.guard()?, features: self.loss.features(), ..recipe };
        recipe.check()?;
        Ok(recipe)
    }

    pub fn schedules(&self) -> Schedules {
        self.loss.schedules(self.training.schedules())
    }

    /// The student of that shape and seed that training starts from.
    pub fn start(&self, layers: &[usize], train: &Dataset, seed: u64) -> Result<Model> {
        self.network.start_as(layers, &self.foreign, train, seed)
    }

    /// Reads data, teachers and, of the shape `layers`, the student of `--seed`. Students that are taught by
    /// several `losses` share all but the student.
    pub fn prepare(&self, recipe: &Recipe, layers: &[usize], losses: &[Loss]) -> Result<Prepared> {
        let (classes, seed) = (layers.last().copied().unwrap_or(0), self.training.seed);
        let split = self.data.load(losses.iter().any(Loss::uses_labels))?;
        let models = self.teacher.models(&self.foreign, &split.train, classes)?;
        let (loaded, transfer) = (split.train.rows(), self.transfer.load(&self.data)?);
        // Logits on disk are of the rows as loaded, before any is held back or left out: the training rows and
        // behind them the transfer set.
        let (mut cached, mut cached_test) = (Vec::new(), Vec::new());
        let temperature = losses.first().map_or(1.0, |loss| loss.temperature);
        if self.teacher.uses_logits() {
            let wanted = Wanted {
                rows: loaded + transfer.as_ref().map_or(0, Dataset::rows),
                classes,
                data_sha256: &split.train.content_sha256_with(transfer.as_ref())?,
                part: "train",
                temperature,
            };
            cached = self.teacher.logits(&wanted, recipe.batch)?;
            cached_test = self.teacher.logits_of_test(split.test.as_ref(), &wanted)?;
            let cut = |l: &Logits| l.manifest.as_ref().is_some_and(|m| m.top_k.is_some());
            let differs = |loss: &Loss| loss.temperature.to_bits() != temperature.to_bits();
            let option = match self.schedules().temperature.is_constant() {
                false => Some("--temperature-schedule"),
                true => losses.iter().any(differs).then_some("--grid temperature"),
            };
            if let Some(option) = option.filter(|_| cached.iter().any(cut)) {
                return Err(Error::usage(option, "logits of every class", "the top-k of some T"));
            }
        }
        let held_out = split.validation.is_none();
        let split = self.rows.hide_labels(self.training.split(split)?, seed)?;
        let mut split = self.transfer.apply(split, transfer, loaded)?;
        // The heaviest hard loss has the most to say.
        let heaviest = losses.iter().max_by(|a, b| a.hard_weight.total_cmp(&b.hard_weight));
        heaviest.into_iter().for_each(|loss| warn_of_labels(loss, &split.train));
        let start = self.start(layers, &split.train, seed)?;
        self.rows.normalise(&self.data, &mut split, start.normalisation.as_ref())?;
        let cached = Arc::new([cached, cached_test]);
        Ok(Prepared { split, held_out, models, cached, start })
    }
}
