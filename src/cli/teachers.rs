//! One or several teachers as the command line names them: networks, logits on disk, or both.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};
use sha2::{Digest, Sha256};

use crate::cli::common::ActivationName;
use crate::cli::job::logits_as;
use crate::data::{Dataset, Normalisation};
use crate::distill::infer::Inference;
use crate::distill::logits::{Logits, Wanted};
use crate::distill::loss::Loss;
use crate::distill::teacher::{Member, Teacher};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernels::ensemble::Rule;
use crate::kernels::matmul::Activation;
use crate::mlp::Mlp;
use crate::mlp::weights::{Model, ReadOptions};
use crate::reference::Matrix;
use crate::report::progress::Progress;
use crate::train::{Length, Recipe};

/// How model files that were not written by limbeck are read.
#[derive(Args)]
#[command(next_help_heading = "Foreign models")]
pub struct ForeignArgs {
    /// Activation of the hidden layers of models that do not say [default: what the file says, else relu].
    #[arg(long, value_enum, value_name = "NAME")]
    model_activation: Option<ActivationName>,
    /// Weights are stored [in, out]; needed only where their names do not say so, as dense/kernel does.
    #[arg(long)]
    keras_kernels: bool,
}

impl ForeignArgs {
    /// Reads a model; says on stderr what had to be assumed.
    pub fn load(&self, path: &Path) -> Result<Model> {
        self.load_as(path, None, None)
    }

    /// The same with an activation or layer sizes that other options ask for.
    pub fn load_as(
        &self,
        path: &Path,
        activation: Option<Activation>,
        sizes: Option<Vec<usize>>,
    ) -> Result<Model> {
        let activation = activation.or(self.model_activation.map(Into::into));
        let options = ReadOptions { activation, keras_kernels: self.keras_kernels, sizes };
        let model = Model::load(path, &options)?;
        if !model.activation_known && model.weights.layers.len() > 1 {
            eprintln!("note: {} names no activation; relu is assumed (--model-activation)", path.display());
        }
        Ok(model)
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum RuleName {
    /// Mean of the probabilities at the run's temperature.
    Arithmetic,
    /// Mean of the logits.
    Geometric,
}

#[derive(Args)]
#[command(next_help_heading = "Distillation")]
pub struct TeacherArgs {
    /// The teacher's weights, a safetensors file; several make an ensemble. They are never changed.
    #[arg(long, value_name = "FILE")]
    teacher: Vec<PathBuf>,
    /// Logits for every training row instead of a network: a folder that `limbeck logits` wrote, or any
    /// .npy or .safetensors matrix [rows, classes]; several make an ensemble.
    #[arg(long, value_name = "PATH")]
    teacher_logits: Vec<PathBuf>,
    /// The same teachers' logits of the test rows (`limbeck logits --split test`), as many and in the same
    /// order: for the agreement in the evaluation.
    #[arg(long, value_name = "PATH", requires = "teacher_logits")]
    test_logits: Vec<PathBuf>,
    /// How several teachers become one.
    #[arg(long, value_enum, default_value = "arithmetic")]
    ensemble: RuleName,
}

struct Network {
    mlp: Mlp,
    normalisation: Normalisation,
    sha256: String,
}

/// Teachers, ready to teach.
pub struct Teachers {
    networks: Vec<Network>,
    /// Of the rows that are walked; and the same teachers' of the test rows, or none.
    cached: Arc<[Vec<Logits>; 2]>,
    rule: Rule,
    /// T of the soft term, at which probabilities are averaged.
    temperature: f64,
}

/// What teachers say of some rows: the logits of each.
pub struct Answers {
    members: Vec<Matrix>,
    rule: Rule,
}

impl Answers {
    /// As one teacher's, where a soft term at `temperature` makes one of them.
    pub fn at(&self, temperature: f64) -> Cow<'_, Matrix> {
        match self.members.as_slice() {
            [one] => Cow::Borrowed(one),
            all => Cow::Owned(joint(all, self.rule, temperature)),
        }
    }
}

/// Which of the logits on disk are of the rows to judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisk {
    /// None.
    No,
    /// Those of the training rows.
    Train,
    /// Those of the test rows, if they were given.
    Test,
}

/// A teacher whose outputs are other classes, or the same in another order, would teach nonsense.
pub fn check_class_names(path: &Path, model: &Model, data: &Dataset) -> Result<()> {
    match (&model.class_names, &data.class_names) {
        (Some(own), Some(wanted)) if own != wanted => {
            let text = |names: &[String]| {
                names.iter().take(20).map(|n| format!("{n:.40}")).collect::<Vec<_>>().join(", ")
            };
            Err(Error::data(path, "class names", format!("{}, as the data has", text(wanted)), text(own)))
        }
        _ => Ok(()),
    }
}

/// A teacher's model, checked against the data and the student's classes.
pub fn load_teacher(foreign: &ForeignArgs, path: &Path, data: &Dataset, classes: usize) -> Result<Model> {
    let model = foreign.load(path)?;
    check_class_names(path, &model, data)?;
    let sizes = model.weights.sizes();
    let bad = |what: &str, expected: usize, found: usize| {
        Error::data(path, "layers", format!("{expected} {what}"), format!("{found}"))
    };
    match (sizes.first(), sizes.last()) {
        (Some(&inputs), _) if inputs != data.features() => {
            Err(bad("inputs, the data's features", data.features(), inputs))
        }
        (_, Some(&outputs)) if outputs != classes => {
            Err(bad("outputs, the student's classes", classes, outputs))
        }
        _ => Ok(model),
    }
}

impl TeacherArgs {
    /// Makes sure that there is a teacher where the loss needs one, and none where it does not.
    pub fn check(&self, loss: &Loss) -> Result<()> {
        let given = !self.teacher.is_empty() || !self.teacher_logits.is_empty();
        match (given, loss.soft.loss.needs_teacher()) {
            (true, true) | (false, false) => Ok(()),
            (false, true) => {
                Err(Error::usage("--teacher", "a teacher's weights, or --teacher-logits", "neither")
                    .with_hint("`limbeck train` makes a teacher; --loss virtual-teacher needs none"))
            }
            (true, false) => {
                Err(Error::usage("--teacher", "none: virtual-teacher makes its own of the labels", "one")
                    .with_hint("`limbeck eval --teacher` compares the result with a teacher"))
            }
        }
    }

    /// Whether the data's hash will be needed.
    pub fn uses_logits(&self) -> bool {
        !self.teacher_logits.is_empty()
    }

    /// Size of the networks' files.
    pub fn bytes(&self) -> u64 {
        self.teacher.iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum()
    }

    /// Reads the networks, checked against the data, which still has its own scale.
    pub fn models(&self, foreign: &ForeignArgs, data: &Dataset, classes: usize) -> Result<Vec<Model>> {
        self.teacher
            .iter()
            .map(|path| {
                let mut model = load_teacher(foreign, path, data, classes)?;
                // A teacher that does not say gets the data as it comes, however the student wants it.
                model.normalisation.get_or_insert_with(|| data.normalisation.clone());
                Ok(model)
            })
            .collect()
    }

    /// Reads the logits of the test rows, where given.
    pub fn logits_of_test(&self, test: Option<&Dataset>, wanted: &Wanted<'_>) -> Result<Vec<Logits>> {
        if self.test_logits.is_empty() {
            return Ok(Vec::new());
        }
        let count = |paths: &[PathBuf]| format!("{} of them", paths.len());
        if self.test_logits.len() != self.teacher_logits.len() {
            let expected = format!("{}, as --teacher-logits", count(&self.teacher_logits));
            return Err(Error::usage("--test-logits", expected, count(&self.test_logits)));
        }
        let test = test.ok_or_else(|| Error::usage("--test-logits", "test rows", "training rows only"))?;
        let wanted = Wanted {
            rows: test.rows(),
            data_sha256: &test.content_sha256()?,
            part: "test",
            ..wanted.clone()
        };
        self.test_logits.iter().map(|path| Logits::load(path, &wanted)).collect()
    }

    /// Reads the logits, checked against the data as loaded.
    pub fn logits(&self, wanted: &Wanted<'_>, batch: usize) -> Result<Vec<Logits>> {
        let load = |path: &PathBuf| {
            let logits = Logits::load(path, wanted)?;
            if let Some(m) = logits.manifest.as_ref().filter(|m| m.batch_size != batch) {
                eprintln!(
                    "note: {} was computed {} rows at a time and this run takes {batch}: the last bit may \
                     differ from a live teacher's",
                    path.display(),
                    m.batch_size
                );
            }
            Ok(logits)
        };
        self.teacher_logits.iter().map(load).collect()
    }

    /// Puts the networks on the device.
    pub fn ready(
        &self,
        gpu: &Gpu,
        models: &[Model],
        cached: Arc<[Vec<Logits>; 2]>,
        temperature: f64,
    ) -> Result<Teachers> {
        let networks = models
            .iter()
            .enumerate()
            .map(|(i, model)| {
                let name = if i == 0 { "teacher".to_owned() } else { format!("teacher{i}") };
                Ok(Network {
                    sha256: model.weights.sha256(),
                    normalisation: model.normalisation.clone().unwrap_or(Normalisation::scaled(1.0)),
                    mlp: Mlp::upload(gpu, &name, std::slice::from_ref(&model.weights))?,
                })
            })
            .collect::<Result<_>>()?;
        let rule = match self.ensemble {
            RuleName::Arithmetic => Rule::Arithmetic,
            RuleName::Geometric => Rule::Geometric,
        };
        Ok(Teachers { networks, cached, rule, temperature })
    }
}

/// Several teachers' logits as one's, as shaders/ensemble.wgsl: their mean, or T times the logarithm of the
/// mean of their probabilities at T.
fn joint(members: &[Matrix], rule: Rule, temperature: f64) -> Matrix {
    let (rows, classes) = members.first().map_or((0, 0), |m| (m.rows, m.cols));
    let count = members.len() as f64;
    let mut all = Matrix::zeros(rows, classes);
    for r in 0..rows {
        // The logarithm of a sum of exponentials, safe whatever their size.
        let log_sum = |values: &mut dyn Iterator<Item = f64>| {
            let values: Vec<f64> = values.collect();
            let top = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            top + values.iter().map(|v| (v - top).exp()).sum::<f64>().ln()
        };
        let scaled = |m: &Matrix, c: usize| m.row(r)[c] / temperature;
        let sums: Vec<f64> =
            members.iter().map(|m| log_sum(&mut (0..classes).map(|c| scaled(m, c)))).collect();
        for (c, to) in all.row_mut(r).iter_mut().enumerate() {
            *to = match rule {
                Rule::Geometric => members.iter().map(|m| m.row(r)[c]).sum::<f64>() / count,
                Rule::Arithmetic => {
                    let logs = &mut members.iter().zip(&sums).map(|(m, sum)| scaled(m, c) - sum);
                    temperature * (log_sum(logs) - count.ln())
                }
            };
        }
    }
    all
}

impl Teachers {
    /// Whether there is none: the loss does without.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.cached[0].is_empty()
    }

    /// The teacher of a run of `recipe` over `train`, or of several runs (`again`). Where rows come up more
    /// than once, a network is asked about all of them beforehand, as many at a time as in a step, which
    /// gives the bits that it would give there; not where it has to see moved images, where its hidden
    /// layers teach, or where the answers would take more than a GiB.
    pub fn source(
        &self,
        gpu: &Gpu,
        train: &Dataset,
        recipe: &Recipe,
        memory: Option<u64>,
        again: bool,
        quiet: bool,
    ) -> Result<Teacher> {
        let rows = train.rows();
        let classes = |n: &Network| n.mlp.sizes.last().copied().unwrap_or(0);
        let bytes = 4 * rows * self.networks.iter().map(classes).sum::<usize>();
        let again = again
            || match recipe.length {
                Length::Epochs(n) => n > 1,
                Length::Steps(n) => n > rows.div_ceil(recipe.batch) as u64,
            };
        let live = recipe.regularize.jitter > 0 || !recipe.features.is_empty() || bytes > 1 << 30;
        if live || !again {
            let live = |n: &Network| Ok(Member::Live(n.mlp.clone(), Some(n.normalisation.clone())));
            return self.members(gpu, train, memory, live);
        }
        let batch = (recipe.batch / recipe.accumulate).min(rows);
        let answers = |n: &Network| {
            let inference = Inference::record_as(gpu, &n.mlp, train, Some(&n.normalisation), batch)?;
            let steps = rows.div_ceil(batch) as u64;
            let mut progress = Progress::new("asking the teacher", steps, quiet);
            let (began, mut all) = (Instant::now(), Vec::with_capacity(rows * classes(n)));
            inference.each_blocking(gpu, |rows, logits| {
                all.extend(logits);
                let done = rows.end.div_ceil(batch) as u64;
                let left = began.elapsed().mul_f64((steps - done) as f64 / done as f64);
                progress.at(done, steps, Some(left), "");
                Ok(())
            })?;
            progress.finish();
            Member::cached(gpu, classes(n), all, memory)
        };
        self.members(gpu, train, memory, answers)
    }

    fn members(
        &self,
        gpu: &Gpu,
        train: &Dataset,
        memory: Option<u64>,
        network: impl Fn(&Network) -> Result<Member>,
    ) -> Result<Teacher> {
        if self.is_empty() {
            return Ok(Teacher::None);
        }
        let cached = |logits: &Logits| Member::cached(gpu, logits.classes, logits.of(train), memory);
        let members = self.networks.iter().map(network).chain(self.cached[0].iter().map(cached));
        Ok(Teacher::Ensemble(members.collect::<Result<_>>()?, self.rule))
    }

    /// The teacher's logits over `rows` on the host; `None` where some are on disk and these rows are not
    /// among them.
    pub fn judge(&self, gpu: &Gpu, rows: &Dataset, on_disk: OnDisk) -> Result<Option<Matrix>> {
        Ok(self.answers(gpu, rows, on_disk)?.map(|all| all.at(self.temperature).into_owned()))
    }

    /// What each teacher says of `rows`; `None` as for [`Teachers::judge`].
    pub fn answers(&self, gpu: &Gpu, rows: &Dataset, on_disk: OnDisk) -> Result<Option<Answers>> {
        let stored = match on_disk {
            OnDisk::No => &[],
            OnDisk::Train => self.cached[0].as_slice(),
            OnDisk::Test => self.cached[1].as_slice(),
        };
        if self.is_empty() || stored.len() < self.cached[0].len() {
            return Ok(None);
        }
        let live = self.networks.iter().map(|n| logits_as(gpu, &n.mlp, rows, Some(&n.normalisation)));
        let stored = stored.iter().map(|l| Ok(Matrix::from_f32(rows.rows(), l.classes, &l.of(rows))));
        let members = live.chain(stored).collect::<Result<Vec<_>>>()?;
        Ok(Some(Answers { members, rule: self.rule }))
    }

    /// What the run record says of them: sha256 of each network's weights and of each set of logits.
    pub fn sha256(&self) -> Vec<String> {
        let logits = |l: &Logits| {
            let mut sha = Sha256::new();
            l.values.iter().for_each(|v| sha.update(v.to_le_bytes()));
            sha.finalize().iter().map(|b| format!("{b:02x}")).collect()
        };
        self.networks.iter().map(|n| n.sha256.clone()).chain(self.cached[0].iter().map(logits)).collect()
    }

    /// Frozen by construction: nothing holds a gradient for a teacher. Shown all the same.
    pub fn check_unchanged(&self, gpu: &Gpu) -> Result<()> {
        for network in &self.networks {
            let before = &network.sha256;
            let after = network.mlp.read_blocking(gpu)?.swap_remove(0).sha256();
            if *before != after {
                return Err(Error::Run(format!(
                    "the teacher changed: sha256 {before} before, {after} after"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_teachers_as_one() {
        // At T = 2 the first says 9:1, the second 1:3; and one so sure that f64 has no other class left.
        let two = |p: [f64; 2]| p.map(|p: f64| 2.0 * p.ln() + 5.0).to_vec();
        let a = Matrix::new(2, 2, [two([0.9, 0.1]), vec![0.0, 4000.0]].concat());
        let b = Matrix::new(2, 2, [two([0.25, 0.75]), vec![1.0, 3999.0]].concat());
        let mean = joint(&[a.clone(), b.clone()], Rule::Arithmetic, 2.0);
        for (found, p) in mean.row(0).iter().zip([0.575_f64, 0.425]) {
            assert!((found - 2.0 * p.ln()).abs() < 1e-12, "{found}");
        }
        // log of (e^-2000 + e^-1999) / 2 and of 1.
        let wanted = 2.0 * (-1999.0 + (1.0 + (-1.0_f64).exp()).ln() - 2.0_f64.ln());
        assert!((mean.row(1)[0] - wanted).abs() < 1e-9 && mean.row(1)[1].abs() < 1e-12, "{:?}", mean.row(1));
        let mean = joint(&[a.clone(), b], Rule::Geometric, 2.0);
        assert!((mean.row(1)[0] - 0.5).abs() < 1e-12 && (mean.row(1)[1] - 3999.5).abs() < 1e-12);
    }
}
