//! The loss as the command line names it, and the presets that reproduce what others call by the same name.

use clap::{Args, ValueEnum};

use crate::cli::common::OptimizerName;
use crate::data::{Dataset, UNLABELLED};
use crate::distill::features::Feature;
use crate::distill::loss::Loss;
use crate::error::{Error, Result};
use crate::kernels::feature::Kind;
use crate::kernels::head::Soft;
use crate::reference::SoftLoss;
use crate::train::schedule::{Schedule, Schedules};

#[derive(Args, Clone)]
#[command(next_help_heading = "Distillation")]
pub struct LossArgs {
    /// The loss as another project computes it; what is given beside it overrides it. The canonical
    /// options that it comes to are printed.
    #[arg(long, value_enum, value_name = "NAME")]
    preset: Option<Preset>,
    /// What pulls the student towards its teacher [default: forward-kl].
    #[arg(long, value_enum, value_name = "NAME")]
    loss: Option<LossName>,
    /// Both logits are divided by T in the soft term [default: 4].
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Keras's alpha: hard_weight = ALPHA and soft_weight = 1 - ALPHA [default: 0.1].
    #[arg(long, conflicts_with_all = ["hard_weight", "soft_weight"], allow_negative_numbers = true)]
    alpha: Option<f64>,
    /// Weight of the cross-entropy with the labels.
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    hard_weight: Option<f64>,
    /// Weight of the soft loss, which has T^2 in it.
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    soft_weight: Option<f64>,
    /// Share of the hard target spread evenly over the classes.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    label_smoothing: f64,
    /// Standardise each row of logits, the student's and the teacher's, before the soft loss (LSKD).
    #[arg(long)]
    standardise_logits: bool,
    /// The teacher's weight in the mixture of jsd, above 0 and below 1 [default: 0.5].
    #[arg(long, value_name = "BETA", allow_negative_numbers = true)]
    loss_beta: Option<f64>,
    /// Weight of dkd's target-class part [default: 1].
    #[arg(long, value_name = "ALPHA", allow_negative_numbers = true)]
    dkd_alpha: Option<f64>,
    /// Weight of dkd's non-target part [default: 8].
    #[arg(long, value_name = "BETA", allow_negative_numbers = true)]
    dkd_beta: Option<f64>,
    /// Probability that virtual-teacher gives the label at T = 1 [default: 0.9].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    virtual_confidence: Option<f64>,
    /// Raise probabilities to at least P in forward-kl, as Keras does with 1e-7; 0 for not.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    clip: Option<f64>,
    /// How T changes: constant, linear[:END[:STEPS]], cosine[:END[:STEPS]], exponential:END[:STEPS] or
    /// step:FACTOR:STEPS.
    #[arg(long, value_name = "SCHEDULE")]
    temperature_schedule: Option<Schedule>,
    /// How the hard loss's weight changes; as above, after warmup:STEPS, if wanted.
    #[arg(long, value_name = "SCHEDULE")]
    hard_weight_schedule: Option<Schedule>,
    /// How the soft loss's weight changes; as above, after warmup:STEPS, if wanted.
    #[arg(long, value_name = "SCHEDULE")]
    soft_weight_schedule: Option<Schedule>,
    /// FitNets hint: the mean squared difference between a hidden layer of the teacher and a linear map,
    /// trained along, of one of the student. Layers count from 1, the weight is 1 if not said. Repeatable.
    #[arg(long, value_name = "STUDENT:TEACHER[:WEIGHT]")]
    hint: Vec<Layers>,
    /// Similarity preserving: which rows of a batch the teacher's hidden layer holds to be alike, the
    /// student's shall too. As --hint; weights in the thousands are usual. Repeatable.
    #[arg(long, value_name = "STUDENT:TEACHER[:WEIGHT]")]
    similarity: Vec<Layers>,
}

/// A hidden layer of the student, one of the teacher, and the weight of the loss between them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Layers {
    student: usize,
    teacher: usize,
    weight: f64,
}

impl std::str::FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || {
            "expected STUDENT:TEACHER or STUDENT:TEACHER:WEIGHT, layers from 1, such as 1:2:0.5".to_owned()
        };
        let parts: Vec<&str> = text.split(':').collect();
        let layer = |i: usize| parts.get(i).and_then(|p| p.parse().ok()).filter(|n| *n > 0).ok_or_else(wrong);
        let weight = match parts.get(2) {
            Some(weight) => {
                weight.parse().ok().filter(|w: &f64| *w > 0.0 && w.is_finite()).ok_or_else(wrong)?
            }
            None => 1.0,
        };
        match parts.len() {
            2 | 3 => Ok(Self { student: layer(0)?, teacher: layer(1)?, weight }),
            _ => Err(wrong()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LossName {
    /// T^2 KL(teacher, student): Hinton, Vinyals, Dean 2015.
    ForwardKl,
    /// T^2 KL(student, teacher).
    ReverseKl,
    /// The mean of the two.
    SymmetricKl,
    /// T^2 times the generalised Jensen-Shannon divergence.
    Jsd,
    /// Decoupled KD (Zhao et al. 2022): target and non-target classes apart; labels needed.
    Dkd,
    /// Mean squared difference of the logits; knows no T.
    Mse,
    /// T^2 times one binary KL per class, summed: for several labels at once.
    Sigmoid,
    /// Teacher-free KD (Yuan et al. 2020): forward KL from a teacher made of the label.
    VirtualTeacher,
}

/// Whose convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Preset {
    /// The Keras 3 example: alpha 0.1, T 10, clip 1e-7, Keras's Adam.
    Keras,
    /// The Keras example of 2020: the same without T^2.
    #[value(name = "keras-2020")]
    Keras2020,
    /// Hinton, Vinyals, Dean 2015: T 20 as on MNIST, hard weight 0.5 as in speech.
    Hinton,
    /// torchdistill's KDLoss, at alpha 0.5 and T 1 where nothing is said: no T^2 without a hard loss.
    Torchdistill,
    /// mdistiller's DKD on CIFAR-100: CE + DKD(1, 8) at T 4, without its warm-up of 20 epochs.
    MdistillerDkd,
    /// torchtune's knowledge distillation: half cross-entropy, half forward KL, T 1.
    Torchtune,
    /// TRL's GKD: JSD(0.5) at T 1, no T^2, no hard loss.
    Trl,
    /// DeiT's soft distillation: half and half at T 1, the KL divided by the classes.
    Deit,
}

/// What a preset's soft weight is multiplied with to become ours.
#[derive(Clone, Copy)]
enum Factor {
    One,
    /// Its loss has no T^2.
    NoTSquared,
    /// The same, but only where no hard loss is used; the soft weight then is 1.
    NoTSquaredAlone,
    /// It divides by B K instead of B.
    OverClasses,
}

/// A preset: its loss, T, hard and soft share, and the rest of its convention.
struct Convention {
    loss: SoftLoss,
    temperature: f64,
    hard: f64,
    soft: f64,
    factor: Factor,
}

impl Preset {
    fn convention(self) -> Convention {
        use Factor::{NoTSquared, NoTSquaredAlone, One, OverClasses};
        let (forward, clipped) = (SoftLoss::ForwardKl, SoftLoss::ClippedKl { clip: 1e-7 });
        let dkd = SoftLoss::Dkd { alpha: 1.0, beta: 8.0 };
        let of = |loss, temperature, hard, soft, factor| Convention { loss, temperature, hard, soft, factor };
        match self {
            Self::Keras => of(clipped, 10.0, 0.1, 0.9, One),
            Self::Keras2020 => of(clipped, 10.0, 0.1, 0.9, NoTSquared),
            Self::Hinton => of(forward, 20.0, 0.5, 1.0, One),
            Self::Torchdistill => of(forward, 1.0, 0.5, 0.5, NoTSquaredAlone),
            Self::MdistillerDkd => of(dkd, 4.0, 1.0, 1.0, One),
            Self::Torchtune => of(forward, 1.0, 0.5, 0.5, One),
            Self::Trl => of(SoftLoss::Jsd { beta: 0.5 }, 1.0, 0.0, 1.0, NoTSquared),
            Self::Deit => of(forward, 1.0, 0.5, 0.5, OverClasses),
        }
    }

    fn optimizer(self) -> Option<OptimizerName> {
        matches!(self, Self::Keras | Self::Keras2020).then_some(OptimizerName::KerasAdam)
    }
}

impl LossArgs {
    /// The losses on hidden layers.
    pub fn features(&self) -> Vec<Feature> {
        let of = |kind| {
            move |l: &Layers| Feature { kind, student: l.student, teacher: l.teacher, weight: l.weight }
        };
        let similar = self.similarity.iter().map(of(Kind::Similarity));
        self.hint.iter().map(of(Kind::Hint)).chain(similar).collect()
    }

    /// The optimiser that the preset's convention includes.
    pub fn optimizer(&self) -> Option<OptimizerName> {
        self.preset.and_then(Preset::optimizer)
    }

    /// Gives the option of this name, which may have underscores, another number; `false` where it has none.
    pub fn set(&mut self, option: &str, value: f64) -> bool {
        let of = match option {
            "temperature" => &mut self.temperature,
            "alpha" => &mut self.alpha,
            "hard_weight" => &mut self.hard_weight,
            "soft_weight" => &mut self.soft_weight,
            "loss_beta" => &mut self.loss_beta,
            "dkd_alpha" => &mut self.dkd_alpha,
            "dkd_beta" => &mut self.dkd_beta,
            "virtual_confidence" => &mut self.virtual_confidence,
            "clip" => &mut self.clip,
            "label_smoothing" => {
                self.label_smoothing = value;
                return true;
            }
            _ => return false,
        };
        *of = Some(value);
        true
    }

    /// The loss over `classes` classes. Says on stderr what it is in canonical options, unless `quiet`.
    pub fn loss(&self, classes: usize, quiet: bool) -> Result<Loss> {
        let convention = self.preset.map(Preset::convention);
        if self.alpha.is_some() && (self.hard_weight.is_some() || self.soft_weight.is_some()) {
            let expected = "either alpha or hard_weight and soft_weight";
            return Err(Error::usage("--alpha", expected, "both"));
        }
        if self.preset.is_none() && self.hard_weight.is_some() != self.soft_weight.is_some() {
            return Err(Error::usage("--hard-weight and --soft-weight", "both or neither", "one of them")
                .with_hint("--alpha A is short for --hard-weight A and --soft-weight 1 - A"));
        }
        let convention = convention.unwrap_or(Convention {
            loss: SoftLoss::ForwardKl,
            temperature: 4.0,
            hard: 0.1,
            soft: 0.9,
            factor: Factor::One,
        });
        let temperature = self.temperature.unwrap_or(convention.temperature);
        let (hard, soft) = match self.alpha {
            Some(alpha) if (0.0..=1.0).contains(&alpha) => (alpha, 1.0 - alpha),
            Some(alpha) => return Err(Error::usage("--alpha", "a number from 0 to 1", alpha.to_string())),
            None => (convention.hard, convention.soft),
        };
        let hard_weight = self.hard_weight.unwrap_or(hard);
        let t_squared = temperature * temperature;
        let soft_weight = match convention.factor {
            Factor::NoTSquared => soft / t_squared,
            Factor::NoTSquaredAlone if hard_weight <= 0.0 => 1.0 / t_squared,
            Factor::OverClasses => soft / classes.max(1) as f64,
            Factor::NoTSquaredAlone | Factor::One => soft,
        };
        let of_t = matches!(convention.factor, Factor::NoTSquared | Factor::NoTSquaredAlone);
        if of_t && self.soft_weight.is_none() && self.temperature_schedule.is_some_and(|s| !s.is_constant()) {
            return Err(Error::usage(
                "--temperature-schedule",
                "a soft weight that does not depend on T",
                "a preset without T^2",
            )
            .with_hint("give --soft-weight and --soft-weight-schedule themselves"));
        }
        let loss = Loss {
            soft: Soft { loss: self.soft_loss(convention.loss)?, standardise: self.standardise_logits },
            temperature,
            hard_weight,
            soft_weight: self.soft_weight.unwrap_or(soft_weight),
            smoothing: self.label_smoothing,
        };
        loss.check_classes(classes)?;
        if !quiet {
            let optimizer = self.optimizer().map_or("", |_| " --optimizer keras-adam");
            eprintln!("loss: {loss}{optimizer}");
        }
        Ok(loss)
    }

    /// The named loss with its parameters, each from its option, else from the preset, else usual ones.
    fn soft_loss(&self, preset: SoftLoss) -> Result<SoftLoss> {
        let named = self.loss.map(|name| match name {
            LossName::ForwardKl => SoftLoss::ForwardKl,
            LossName::ReverseKl => SoftLoss::ReverseKl,
            LossName::SymmetricKl => SoftLoss::Symmetric,
            LossName::Jsd => SoftLoss::Jsd { beta: 0.5 },
            LossName::Dkd => SoftLoss::Dkd { alpha: 1.0, beta: 8.0 },
            LossName::Mse => SoftLoss::Mse,
            LossName::Sigmoid => SoftLoss::Sigmoid,
            LossName::VirtualTeacher => SoftLoss::VirtualTeacher { confidence: 0.9 },
        });
        let mut given = [
            ("--loss-beta", self.loss_beta),
            ("--dkd-alpha", self.dkd_alpha),
            ("--dkd-beta", self.dkd_beta),
            ("--virtual-confidence", self.virtual_confidence),
            ("--clip", self.clip),
        ];
        let mut take = |option: &str, usual: f64| {
            let slot = given.iter_mut().find(|(name, _)| *name == option);
            slot.and_then(|(_, value)| value.take()).unwrap_or(usual)
        };
        let loss = match named.unwrap_or(preset) {
            SoftLoss::Jsd { beta } => SoftLoss::Jsd { beta: take("--loss-beta", beta) },
            SoftLoss::Dkd { alpha, beta } => {
                SoftLoss::Dkd { alpha: take("--dkd-alpha", alpha), beta: take("--dkd-beta", beta) }
            }
            SoftLoss::VirtualTeacher { confidence } => {
                SoftLoss::VirtualTeacher { confidence: take("--virtual-confidence", confidence) }
            }
            SoftLoss::ClippedKl { clip } => Self::clipped(take("--clip", clip)),
            SoftLoss::ForwardKl => Self::clipped(take("--clip", 0.0)),
            other => other,
        };
        match given.into_iter().find(|(_, value)| value.is_some()) {
            Some((option, _)) => Err(Error::usage(
                option,
                "the loss that it is a parameter of",
                format!("--loss {}", loss.name()),
            )),
            None => Ok(loss),
        }
    }

    fn clipped(clip: f64) -> SoftLoss {
        if clip == 0.0 { SoftLoss::ForwardKl } else { SoftLoss::ClippedKl { clip } }
    }

    /// The loss's schedules beside those of the training.
    pub fn schedules(&self, training: Schedules) -> Schedules {
        Schedules {
            temperature: self.temperature_schedule.unwrap_or_default(),
            hard_weight: self.hard_weight_schedule.unwrap_or_default(),
            soft_weight: self.soft_weight_schedule.unwrap_or_default(),
            ..training
        }
    }
}

/// Says what the labels of the transfer set do to a loss, where that is not what one might think.
pub fn warn_of_labels(loss: &Loss, train: &Dataset) {
    let Some(labels) = train.labels.as_ref().filter(|_| loss.uses_labels()) else { return };
    let mut rows = vec![0_usize; train.classes];
    labels.iter().filter(|l| **l != UNLABELLED).for_each(|l| rows[*l as usize] += 1);
    let labelled: usize = rows.iter().sum();
    let missing: Vec<String> =
        rows.iter().enumerate().filter(|(_, n)| **n == 0).map(|(class, _)| class.to_string()).collect();
    if loss.hard_weight > 0.0 && labelled > 0 && !missing.is_empty() {
        eprintln!(
            "warning: no row is labelled {}: the hard loss (weight {}) teaches on every labelled row that \
             such a class never occurs, against the teacher's soft targets; --hard-weight 0 leaves it to them",
            missing.join(", "),
            loss.hard_weight
        );
    }
    if loss.soft.loss.needs_labels() && labelled < labels.len() {
        eprintln!(
            "note: {} of {} rows have no label and so no {} term",
            labels.len() - labelled,
            labels.len(),
            loss.soft.loss.name()
        );
    }
}

#[cfg(test)]
#[path = "loss_tests.rs"]
mod tests;
