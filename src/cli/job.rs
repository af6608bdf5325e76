//! One training run of one network from the command line, and what it leaves behind.

use std::path::PathBuf;

use crate::cli::common::OutputArgs;
use crate::cli::teachers::Teachers;
use crate::data::{Dataset, Normalisation, Split};
use crate::distill::infer::Inference;
use crate::distill::step::Teacher;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::mlp::Mlp;
use crate::mlp::weights::Model;
use crate::reference::{Matrix, metrics};
use crate::report::metrics_file::{Line, MetricsFile};
use crate::report::progress::Progress;
use crate::train::{Recipe, Replica, Row, Rows, Run};

/// Rows per batch in evaluation: large enough to keep a device busy, small enough for any.
const EVAL_BATCH: usize = 1000;

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
    pub output: &'a OutputArgs,
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
    model: PathBuf,
    parameters: usize,
    weights_sha256: String,
    /// The options that ask for its loss, by their canonical names.
    loss: String,
    steps: u64,
    seconds: f64,
    validation: Option<Evaluation>,
    /// On the test rows, which nothing was chosen by; evaluated once, at the end.
    test: Option<Evaluation>,
}

impl Job<'_> {
    /// Trains, evaluates and writes the model and its metrics.
    pub fn run(self) -> Result<Outcome> {
        let Self { gpu, split, teacher, teachers, recipe, replica, output, title, file, .. } = self;
        let began = std::time::Instant::now();
        let replica_loss = replica.loss;
        let rows = Rows { device_memory: self.device_memory, ..Rows::default() };
        let mut run = Run::new(gpu, &split.train, rows, &teacher, recipe, vec![replica])?;
        let folder = output.create()?;
        let mut metrics = MetricsFile::create(folder)?;
        let mut progress = Progress::new(title, run.steps, output.json);
        let judge = Judge { gpu, teachers };
        let mut validation = None;
        let agreement = |row: &Row| teachers.map(|_| row.agreement);
        let soft = replica_loss.soft_weight > 0.0;
        while run.done < run.steps {
            let to = match split.validation {
                Some(_) => (run.done / run.steps_per_epoch() + 1) * run.steps_per_epoch(),
                None => run.steps,
            };
            run.advance(to, |row| {
                progress.at(row.step, row.steps, &message(row));
                metrics.write(&Line {
                    split: "train",
                    step: row.step,
                    epoch: row.epoch,
                    loss: Some(row.loss),
                    hard_loss: Some(row.hard_loss),
                    soft_loss: soft.then_some(row.soft_loss),
                    accuracy: Some(row.accuracy),
                    agreement: agreement(row),
                    gradient_ratio: row.gradient_ratio.filter(|_| soft),
                    lr: Some(row.lr),
                    temperature: soft.then_some(row.temperature),
                    samples_per_second: Some(row.samples_per_second),
                })
            })?;
            if let Some(rows) = split.validation.as_ref().filter(|v| v.labels.is_some()) {
                let seen = judge.evaluate(run.students(), rows, self.held_out)?;
                metrics.write(&seen.line("validation", &run))?;
                validation = Some(seen);
            }
        }
        progress.finish();
        let weights = run.students().read_blocking(gpu)?.swap_remove(0);
        let test = match split.test.as_ref().filter(|t| t.labels.is_some()) {
            Some(rows) => {
                let seen = judge.evaluate(run.students(), rows, false)?;
                metrics.write(&seen.line("test", &run))?;
                Some(seen)
            }
            None => None,
        };
        let model = folder.join(file);
        let normalisation = Some(split.train.normalisation.clone());
        let class_names = split.train.class_names.clone();
        let trained = Model { weights, normalisation, class_names, activation_known: true };
        trained.save(&model, output.form.options())?;
        let weights = trained.weights;
        Ok(Outcome {
            schema_version: 1,
            adapter: gpu.report.line(),
            model,
            parameters: weights.parameters(),
            weights_sha256: weights.sha256(),
            loss: replica_loss.to_string(),
            steps: run.steps,
            seconds: began.elapsed().as_secs_f64(),
            validation,
            test,
        })
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

struct Judge<'a> {
    gpu: &'a Gpu,
    teachers: Option<&'a Teachers>,
}

impl Judge<'_> {
    fn evaluate(&self, student: &Mlp, rows: &Dataset, cached: bool) -> Result<Evaluation> {
        let teacher = self.teachers.map(|t| t.judge(self.gpu, rows, cached)).transpose()?.flatten();
        evaluate(&logits(self.gpu, student, rows)?, rows, teacher.as_ref())
    }
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
        println!("steps       {} in {:.1} s", self.steps, self.seconds);
        println!("parameters  {}", self.parameters);
        if let Some(e) = &self.validation {
            println!("validation  {}", e.text());
        }
        if let Some(e) = &self.test {
            println!("test        {}", e.text());
        }
        println!("model       {}", self.model.display());
        Ok(())
    }
}
