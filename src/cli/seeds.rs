//! `limbeck distill --seeds N`: the same distillation under several seeds, beside training from scratch.
//!
//! One run says little: another seed may turn the order of two recipes round. The students of all seeds
//! train side by side, then as many from the same first weights, in the same order, for as many steps, on
//! the labels alone; so a seed's two students make a pair.

use std::path::Path;
use std::time::Instant;

use crate::cli::cohort::{Cohort, logits_of_each};
use crate::cli::common::OutputArgs;
use crate::cli::teachers::{OnDisk, Teachers};
use crate::data::{Dataset, Split, UNLABELLED};
use crate::distill::step::{Loss, Teacher};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::mlp::weights::{Model, Weights, write_atomically};
use crate::reference::Matrix;
use crate::report::quality::{Comparison, Quality};
use crate::report::stats::{Estimate, Paired};
use crate::report::table::render;
use crate::train::schedule::{Schedule, Schedules};
use crate::train::shares::Trained;
use crate::train::{Length, Recipe, Replica, Rows};

/// The students of all seeds.
pub struct Seeds<'a> {
    pub gpu: &'a Gpu,
    pub split: &'a Split,
    pub teacher: Teacher,
    pub teachers: &'a Teachers,
    pub recipe: Recipe,
    pub device_memory: Option<u64>,
    pub loss: Loss,
    pub lr: f64,
    pub schedules: Schedules,
    /// Each seed with the student that it starts from.
    pub starts: Vec<(u64, Weights)>,
    pub output: &'a OutputArgs,
}

/// The students of one kind on the test rows.
#[derive(serde::Serialize)]
struct Arm {
    errors: Estimate,
    errors_by_seed: Vec<usize>,
    nll: Estimate,
    brier: Estimate,
    ece: Estimate,
    /// Beside the teacher, where it can be run on the test rows.
    agreement: Option<Estimate>,
    negative_flips: Option<Estimate>,
}

#[derive(serde::Serialize)]
struct Report {
    schema_version: u32,
    adapter: String,
    seeds: Vec<u64>,
    parameters: usize,
    steps: u64,
    seconds: f64,
    test_rows: usize,
    distilled: Arm,
    /// Where the training rows have labels.
    scratch: Option<Arm>,
    /// Distilled less scratch, paired by seed.
    errors: Option<Paired>,
    nll: Option<Paired>,
    /// Test rows that scratch has right and the distilled student of the same seed wrong.
    negative_flips: Option<Estimate>,
}

/// What the students of one kind say of the test rows.
struct Judged {
    logits: Vec<Matrix>,
    quality: Vec<Quality>,
}

impl Judged {
    fn each(&self, of: impl Fn(&Quality) -> f64) -> Vec<f64> {
        self.quality.iter().map(of).collect()
    }

    fn arm(&self, teacher: Option<&Matrix>, labels: &[u32]) -> Result<Arm> {
        let beside =
            |v: &Matrix| self.logits.iter().map(|z| Comparison::of(z, v, labels)).collect::<Result<Vec<_>>>();
        let beside = teacher.map(beside).transpose()?;
        let estimate = |of: fn(&Comparison) -> f64| {
            beside.as_ref().map(|all| Estimate::of(&all.iter().map(of).collect::<Vec<_>>()))
        };
        Ok(Arm {
            errors: Estimate::of(&self.each(|q| q.errors as f64)),
            errors_by_seed: self.quality.iter().map(|q| q.errors).collect(),
            nll: Estimate::of(&self.each(|q| q.nll)),
            brier: Estimate::of(&self.each(|q| q.brier)),
            ece: Estimate::of(&self.each(|q| q.ece)),
            agreement: estimate(|c| c.agreement),
            negative_flips: estimate(|c| c.negative_flips as f64),
        })
    }
}

impl Seeds<'_> {
    /// Trains, writes every student, and reports on the test rows.
    pub fn run(self) -> Result<()> {
        let began = Instant::now();
        let test = self.split.test.as_ref().filter(|t| t.labels.is_some());
        let test = test.ok_or_else(|| Error::usage("--seeds", "test rows with labels", "none"))?;
        let labels = test.labels.as_deref().unwrap_or_default();
        let known: Vec<u32> = match &self.split.train.labels {
            Some(labels) => (0..labels.len() as u32).filter(|i| labels[*i as usize] != UNLABELLED).collect(),
            None => Vec::new(),
        };
        let folder = self.output.create()?;

        let all = Rows { device_memory: self.device_memory, ..Rows::default() };
        let distilled =
            self.train("distilling", all, &self.teacher, (self.loss, self.schedules), self.recipe.length)?;
        let steps = distilled.steps;
        self.save(&distilled, folder, "seed", "student.safetensors")?;
        let scratch = if known.is_empty() {
            None
        } else {
            let rows = Rows { walked: vec![known], device_memory: self.device_memory, ..Rows::default() };
            let loss = Loss { smoothing: self.loss.smoothing, ..Loss::HARD };
            // The soft term's own and its balance with the labels have no meaning here.
            let schedules = Schedules { hard_weight: Schedule::default(), ..self.schedules };
            let scratch =
                self.train("from scratch", rows, &Teacher::None, (loss, schedules), Length::Steps(steps))?;
            self.save(&scratch, folder, "scratch", "model.safetensors")?;
            Some(scratch)
        };

        // Everything is trained, nothing is chosen any more: now the test rows, once.
        let teacher = self.teachers.judge(self.gpu, test, OnDisk::Test)?;
        let distilled = self.judge(&distilled, test)?;
        let scratch = scratch.map(|s| self.judge(&s, test)).transpose()?;
        let paired =
            |of: fn(&Quality) -> f64| scratch.as_ref().map(|s| Paired::of(&distilled.each(of), &s.each(of)));
        let flips = |s: &Judged| {
            let pairs = distilled.logits.iter().zip(&s.logits);
            let flips = pairs.map(|(z, v)| Ok(Comparison::of(z, v, labels)?.negative_flips as f64));
            Ok::<_, Error>(Estimate::of(&flips.collect::<Result<Vec<_>>>()?))
        };
        let report = Report {
            schema_version: 1,
            adapter: self.gpu.report.line(),
            seeds: self.starts.iter().map(|(seed, _)| *seed).collect(),
            parameters: self.starts[0].1.parameters(),
            steps,
            seconds: began.elapsed().as_secs_f64(),
            test_rows: distilled.quality[0].rows,
            errors: paired(|q| q.errors as f64),
            nll: paired(|q| q.nll),
            negative_flips: scratch.as_ref().map(flips).transpose()?,
            distilled: distilled.arm(teacher.as_ref(), labels)?,
            scratch: scratch.map(|s| s.arm(teacher.as_ref(), labels)).transpose()?,
        };
        let text = serde_json::to_string(&report).map_err(|e| Error::Run(e.to_string()))?;
        write_atomically(&folder.join("seeds.json"), text.as_bytes())?;
        match self.output.call.json {
            true => println!("{text}"),
            false => report.print(folder),
        }
        Ok(())
    }

    fn train(
        &self,
        title: &str,
        rows: Rows,
        teacher: &Teacher,
        (loss, schedules): (Loss, Schedules),
        length: Length,
    ) -> Result<Trained> {
        let replica = |(seed, start): &(u64, Weights)| Replica {
            seed: *seed,
            lr: self.lr,
            loss,
            schedules,
            student: start.clone(),
        };
        let replicas = self.starts.iter().map(replica).collect();
        let recipe = Recipe { length, ..self.recipe.clone() };
        let (train, quiet) = (&self.split.train, self.output.call.json);
        let cohort = Cohort { gpu: self.gpu, train, let_fall: false, quiet };
        cohort.train(title, rows, teacher, recipe, replicas)
    }

    /// `DIR/{kind}-{seed}/{file}`: folders that `compare` takes.
    fn save(&self, trained: &Trained, folder: &Path, kind: &str, file: &str) -> Result<()> {
        for (weights, (seed, _)) in trained.students.iter().zip(&self.starts) {
            let folder = folder.join(format!("{kind}-{seed}"));
            std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
            Model::trained_on(&self.split.train, weights.clone())
                .save(&folder.join(file), self.output.form.options())?;
        }
        Ok(())
    }

    fn judge(&self, trained: &Trained, rows: &Dataset) -> Result<Judged> {
        let logits = logits_of_each(self.gpu, &trained.upload(self.gpu)?, rows)?;
        let labels = rows.labels.as_deref().unwrap_or_default();
        let quality = logits.iter().map(|z| Quality::of(z, labels, None)).collect::<Result<_>>()?;
        Ok(Judged { logits, quality })
    }
}

impl Report {
    fn print(&self, folder: &Path) {
        let heading = ["students", "errors", "NLL", "ECE", "agreement with teacher"];
        let mut lines = vec![heading.map(str::to_owned).to_vec()];
        let arms = [("distilled", Some(&self.distilled)), ("from scratch", self.scratch.as_ref())];
        for (name, arm) in arms.into_iter().filter_map(|(name, arm)| Some((name, arm?))) {
            let percent = |e: Estimate| {
                let whole = Estimate { mean: 100.0 * e.mean, half_width: e.half_width.map(|h| 100.0 * h) };
                format!("{} %", whole.text(2))
            };
            lines.push(vec![
                name.to_owned(),
                arm.errors.text(1),
                arm.nll.text(4),
                arm.ece.text(4),
                arm.agreement.map_or("-".to_owned(), percent),
            ]);
        }
        println!("{}", render(&lines));
        println!(
            "{} test rows, mean ± 95 % interval over {} seeds, {} steps each, {:.1} s in all.",
            self.test_rows,
            self.seeds.len(),
            self.steps,
            self.seconds
        );
        if let (Some(errors), Some(flips)) = (&self.errors, &self.negative_flips) {
            let p =
                errors.p.map_or("no test of it".to_owned(), |p| format!("p = {p:.3e} by the paired t-test"));
            println!(
                "Distilled less scratch, seed by seed: {} errors, {p}; {} right answers lost.",
                errors.difference.text(1),
                flips.text(1)
            );
        }
        println!("results  {}", folder.display());
    }
}
