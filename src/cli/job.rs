//! One training run of one network from the command line, and what it leaves behind.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cli::cohort::EVAL_BATCH;
use crate::cli::common::{CallArgs, DeviceArgs, OutputArgs};
use crate::cli::keep::{KeepArgs, interruptions};
use crate::cli::options::{self, Resolved};
use crate::cli::teachers::{OnDisk, Teachers};
use crate::data::{Dataset, Normalisation, Split};
use crate::distill::infer::Inference;
use crate::distill::step::Teacher;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::mlp::Mlp;
use crate::mlp::weights::Model;
use crate::reference::{Matrix, metrics};
use crate::report::metrics_file::Line;
use crate::report::progress::Progress;
use crate::report::quality::{Comparison, Quality};
use crate::train::checkpoint::Checkpoint;
use crate::train::run_dir::{self, Begin, Record, RunDir};
use crate::train::session::{Session, Watcher, retrying};
use crate::train::stop::{Ending, Score};
use crate::train::{Recipe, Replica, Row, Rows, Run, Span};

/// What an evaluation says.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Evaluation {
    /// Rows with a label.
    pub rows: usize,
    /// Wrong ones among them.
    pub errors: usize,
    /// Share that is right.
    pub accuracy: f64,
    /// Mean negative log-likelihood of the label, in nats.
    pub nll: f64,
    /// Share of rows on which network and teacher agree, where there is a teacher.
    pub agreement: Option<f64>,
}

/// Logits of `network`'s first replica over `data`.
pub fn logits(gpu: &Gpu, network: &Mlp, data: &Dataset) -> Result<Matrix> {
    logits_as(gpu, network, data, None)
}

/// The same where the network has a normalisation of its own.
pub fn logits_as(gpu: &Gpu, network: &Mlp, data: &Dataset, own: Option<&Normalisation>) -> Result<Matrix> {
    let classes = network.sizes.last().copied().unwrap_or(0);
    let mut all = Inference::record_as(gpu, network, data, own, EVAL_BATCH)?.logits_blocking(gpu)?;
    Ok(Matrix::from_f32(data.rows(), classes, &all.swap_remove(0)))
}

/// Compares logits with the labels and, where given, with a teacher's logits.
pub fn evaluate(z: &Matrix, data: &Dataset, teacher: Option<&Matrix>) -> Result<Evaluation> {
    let labels = data
        .labels
        .as_ref()
        .ok_or_else(|| Error::usage("data", "labels to compare with", "rows without labels"))?;
    let known: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] != crate::data::UNLABELLED).collect();
    let wanted: Vec<usize> = known.iter().map(|i| labels[*i] as usize).collect();
    if wanted.is_empty() {
        return Err(Error::usage("data", "labels to compare with", "rows without labels"));
    }
    let seen = z.gather(&known);
    Ok(Evaluation {
        rows: known.len(),
        errors: metrics::errors(&seen, &wanted),
        accuracy: metrics::accuracy(&seen, &wanted),
        nll: metrics::nll(&seen, &wanted),
        agreement: teacher.map(|v| metrics::agreement(z, v)),
    })
}

/// One training run of one network, as `train` and `distill` share it.
pub struct Job<'a> {
    pub gpu: &'a Gpu,
    pub split: &'a Split,
    pub teacher: Teacher,
    /// The same, for the agreement in evaluations.
    pub teachers: Option<&'a Teachers>,
    /// Whether the validation rows were taken from the rows that logits on disk are of.
    pub held_out: bool,
    /// Bytes of the device that the rows may take.
    pub device_memory: Option<u64>,
    pub recipe: Recipe,
    pub replica: Replica,
    pub keep: &'a KeepArgs,
    pub output: &'a OutputArgs,
    pub resolved: &'a Resolved,
    /// The record of the run that this one repeats.
    pub expected: Option<&'a Record>,
    pub title: &'static str,
    /// The model's file name in the output folder.
    pub file: &'static str,
}

/// What a run leaves behind.
#[derive(serde::Serialize)]
pub struct Outcome {
    schema_version: u32,
    adapter: String,
    /// The written file.
    pub model: PathBuf,
    parameters: usize,
    pub weights_sha256: String,
    /// The options that ask for its loss, by their canonical names.
    loss: String,
    /// Steps done.
    steps: u64,
    /// Why no more.
    ending: Ending,
    /// The step that the weights are of: the best one on validation, or the last.
    best_step: u64,
    /// Of this process.
    seconds: f64,
    rows_per_second: f64,
    validation: Option<Evaluation>,
    /// What the weights were chosen by.
    chosen_by: &'static str,
    /// On the test rows, which nothing was chosen by; evaluated once, at the end.
    test: Option<Evaluation>,
    /// More of the same: calibration, classes, confusion.
    quality: Option<Quality>,
    /// And beside the teacher: divergence, flips.
    beside_teacher: Option<Comparison>,
}

/// Opens the device and attempts the run, again after a fault of the device where that was asked for.
pub fn run_on(
    device: &DeviceArgs,
    call: &CallArgs,
    attempt: impl FnMut(&Gpu, bool) -> Result<Outcome>,
) -> Result<Outcome> {
    retrying(call.retry_device, || device.open(call.json), attempt, |what| eprintln!("note: {what}"))
}

impl Job<'_> {
    /// Trains, evaluates and fills the run's folder; `again` goes on with what an attempt before left.
    pub fn run(self, again: bool) -> Result<Outcome> {
        let validation = self.split.validation.as_ref().filter(|v| v.labels.is_some());
        self.keep.check_validation(validation.is_some())?;
        let rows = Rows { device_memory: self.device_memory, ..Rows::default() };
        let (recipe, replicas) = (self.recipe.clone(), vec![self.replica.clone()]);
        let mut run = Run::new(self.gpu, &self.split.train, rows, &self.teacher, recipe, replicas)?;
        let (mut dir, from) = self.open(again)?;
        let outcome = self.fill(&mut run, &mut dir, from);
        let closed = dir.close(outcome.as_ref().err());
        // The run's own error says more than that its record could not be written.
        let outcome = outcome?;
        closed.map(|()| outcome)
    }

    /// The run's folder, and where to go on from.
    fn open(&self, again: bool) -> Result<(RunDir, Option<Checkpoint>)> {
        let out = &self.output.out;
        let resume = again && out.join(run_dir::RECORD).exists();
        let begin = if resume { Begin::Resume } else { self.output.call.begin() };
        let config = out.join(options::FILE);
        if begin == Begin::Resume && config.exists() {
            for difference in self.resolved.differences(&config)? {
                eprintln!("note: {difference}");
            }
        }
        let parts = [
            ("train", Some(&self.split.train)),
            ("validation", self.split.validation.as_ref()),
            ("test", self.split.test.as_ref()),
        ];
        let data = parts
            .into_iter()
            .filter_map(|(name, part)| Some((name.to_owned(), part?)))
            .map(|(name, part)| Ok((name, part.fingerprint()?)))
            .collect::<Result<_>>()?;
        let teacher = self.teachers.map(Teachers::sha256).unwrap_or_default();
        let record = Record::new(self.resolved.command(), self.gpu, self.replica.seed, data, teacher);
        if let Some(expected) = self.expected {
            expected.check_same(&record, "replay")?;
        }
        let mut say = |what: &str| eprintln!("note: {what}");
        RunDir::open(out, self.file, begin, self.resolved.text(), record, &mut say)
    }

    fn fill(&self, run: &mut Run<'_>, dir: &mut RunDir, from: Option<Checkpoint>) -> Result<Outcome> {
        let began = std::time::Instant::now();
        let first = from.as_ref().map_or(0, |c| c.state.step);
        let json = self.output.call.json;
        let mut watch = Watch {
            job: self,
            progress: Progress::new(self.title, run.steps, json),
            validation: self.split.validation.as_ref().filter(|v| v.labels.is_some()),
            last: None,
            asked: interruptions()?,
        };
        let session = Session::new(run, dir, self.keep.settings()?, from)?;
        let (ending, best_step) = session.drive(&mut watch)?;
        let last = watch.last.take();
        watch.progress.finish();
        let seconds = began.elapsed().as_secs_f64();
        let trained =
            (run.done - first) as f64 * self.split.train.rows() as f64 / run.steps_per_epoch() as f64;

        let validation = match &watch.validation {
            // The weights are no longer those of the last evaluation.
            Some(rows) if best_step != run.done || last.is_none() => {
                Some(self.evaluate(run.students(), rows, self.validation_on_disk())?)
            }
            _ => last,
        };
        let (mut test, mut quality, mut beside_teacher) = (None, None, None);
        if let Some((rows, labels)) = self.split.test.as_ref().and_then(|t| Some((t, t.labels.as_ref()?))) {
            let (z, v) = self.outputs(run.students(), rows, OnDisk::Test)?;
            let seen = evaluate(&z, rows, v.as_ref())?;
            dir.metrics.write(&seen.line("test", run))?;
            test = Some(seen);
            quality = Some(Quality::of(&z, labels, rows.class_names.as_deref())?);
            beside_teacher = v.map(|v| Comparison::of(&z, &v, labels)).transpose()?;
        }
        dir.metrics.sync()?;
        let weights = run.students().read_blocking(self.gpu)?.swap_remove(0);
        let model = dir.root.join(self.file);
        let student = Model::trained_on(&self.split.train, weights);
        student.save(&model, self.output.form.options())?;
        let weights = student.weights;
        let outcome = Outcome {
            schema_version: 1,
            adapter: self.gpu.report.line(),
            model,
            parameters: weights.parameters(),
            weights_sha256: weights.sha256(),
            loss: self.replica.loss.to_string(),
            steps: run.done,
            ending,
            best_step,
            seconds,
            rows_per_second: trained / seconds,
            chosen_by: match validation {
                Some(_) => {
                    "the validation rows: fewest errors, then the smallest NLL; the test rows were seen once, after that"
                }
                None => {
                    "nothing: the weights are those of the last step; the test rows were seen once, after it"
                }
            },
            validation,
            test,
            quality,
            beside_teacher,
        };
        dir.write_summary(&outcome)?;
        Ok(outcome)
    }

    fn validation_on_disk(&self) -> OnDisk {
        if self.held_out { OnDisk::Train } else { OnDisk::No }
    }

    fn evaluate(&self, student: &Mlp, rows: &Dataset, on_disk: OnDisk) -> Result<Evaluation> {
        let (z, v) = self.outputs(student, rows, on_disk)?;
        evaluate(&z, rows, v.as_ref())
    }

    /// The student's logits and, where it can be asked, the teacher's.
    fn outputs(&self, student: &Mlp, rows: &Dataset, on_disk: OnDisk) -> Result<(Matrix, Option<Matrix>)> {
        let teacher = self.teachers.map(|t| t.judge(self.gpu, rows, on_disk)).transpose()?.flatten();
        Ok((logits(self.gpu, student, rows)?, teacher))
    }
}

/// What a session asks of a job.
struct Watch<'j, 'a> {
    job: &'j Job<'a>,
    progress: Progress,
    validation: Option<&'a Dataset>,
    last: Option<Evaluation>,
    asked: &'static AtomicBool,
}

impl Watcher for Watch<'_, '_> {
    fn line(&mut self, row: &Row) -> Line {
        if row.span == Span::Interval {
            self.progress.at(row.step, row.steps, row.left, &message(row));
        }
        let taught = self.job.teachers.is_some();
        let soft = self.job.replica.loss.soft_weight > 0.0;
        Line {
            split: "train",
            step: row.step,
            epoch: row.epoch,
            loss: Some(row.loss),
            hard_loss: Some(row.hard_loss),
            soft_loss: soft.then_some(row.soft_loss),
            feature_loss: (!self.job.recipe.features.is_empty()).then_some(row.feature_loss),
            accuracy: Some(row.accuracy),
            agreement: taught.then_some(row.agreement),
            gradient_ratio: row.gradient_ratio.filter(|_| soft),
            lr: Some(row.lr),
            temperature: soft.then_some(row.temperature),
            skipped: self.job.recipe.guard.skip.then_some(row.skipped),
        }
    }

    fn validates(&self) -> bool {
        self.validation.is_some()
    }

    fn evaluate(&mut self, run: &Run<'_>) -> Result<(Line, Score)> {
        let rows = self.validation.ok_or_else(|| Error::usage("validation rows", "some", "none"))?;
        let seen = self.job.evaluate(run.students(), rows, self.job.validation_on_disk())?;
        let score = Score { errors: seen.errors as u64, nll: seen.nll };
        let line = seen.line("validation", run);
        self.last = Some(seen);
        Ok((line, score))
    }

    fn interrupted(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

fn message(row: &Row) -> String {
    format!(
        "loss {:.4}  accuracy {:.2} %  {:.0} rows/s",
        row.loss,
        100.0 * row.accuracy,
        row.samples_per_second
    )
}

impl Evaluation {
    fn line(&self, split: &'static str, run: &Run<'_>) -> Line {
        Line {
            split,
            step: run.done,
            epoch: run.done as f64 / run.steps_per_epoch() as f64,
            hard_loss: Some(self.nll),
            accuracy: Some(self.accuracy),
            agreement: self.agreement,
            ..Line::default()
        }
    }

    /// For people: `123 errors of 10000 (1.23 %), NLL 0.0456, agreement 98.7 %`.
    pub fn text(&self) -> String {
        let agreement = self.agreement.map(|a| format!(", agreement with the teacher {:.2} %", 100.0 * a));
        format!(
            "{} errors of {} ({:.2} %), NLL {:.4} nats{}",
            self.errors,
            self.rows,
            100.0 * (1.0 - self.accuracy),
            self.nll,
            agreement.unwrap_or_default()
        )
    }
}

impl Outcome {
    /// Prints the result for people or machines.
    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            let text = serde_json::to_string(self).map_err(|e| Error::Run(e.to_string()))?;
            println!("{text}");
            return Ok(());
        }
        let ending = match self.ending {
            Ending::Complete => String::new(),
            Ending::Patience => format!("; validation was best at step {}", self.best_step),
            Ending::MaxSteps | Ending::MaxMinutes => "; more with --resume".to_owned(),
        };
        println!("steps       {} in {:.1} s{ending}", self.steps, self.seconds);
        println!("parameters  {}", self.parameters);
        if let Some(e) = &self.validation {
            println!("validation  {}", e.text());
        }
        if let Some(e) = &self.test {
            println!("test        {}", e.text());
        }
        if let Some(q) = &self.quality {
            let flips = self.beside_teacher.map(|c| {
                format!(
                    ", KL(teacher || student) {:.4}, {} negative flips",
                    c.kl_reference_model, c.negative_flips
                )
            });
            println!("            Brier {:.4}, ECE {:.4}{}", q.brier, q.ece, flips.unwrap_or_default());
        }
        println!("model       {}", self.model.display());
        Ok(())
    }
}

/// The recipe in micro-batches that fit the device, where a batch of students `side_by_side` or their
/// teachers is too wide for it; says so.
pub fn fitted<'s>(
    recipe: &Recipe,
    gpu: &Gpu,
    rows: usize,
    layers: impl IntoIterator<Item = &'s usize>,
    teachers: &[Model],
    side_by_side: usize,
) -> Recipe {
    let asked = teachers.iter().flat_map(|m| m.weights.sizes());
    let widest = layers.into_iter().copied().chain(asked).max().unwrap_or(1);
    let fitted = recipe.fitted(gpu, rows, widest * side_by_side);
    if fitted.accumulate != recipe.accumulate {
        eprintln!(
            "note: batches of {widest} columns do not fit what the device lets a shader see at once: \
             {} micro-batches to a step, as with --accumulate {0}",
            fitted.accumulate
        );
    }
    fitted
}
