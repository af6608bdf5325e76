//! Where the networks of a reproduction are trained. Each is kept when it is done, so that a reproduction
//! that was interrupted goes on with the next.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::cohort::{Cohort, EVAL_BATCH, logits_of_each};
use crate::cli::reproduce::Args;
use crate::data::{Dataset, Split};
use crate::distill::infer::Inference;
use crate::distill::step::{Guard, Optimizer, Teacher};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernels::matmul::Activation;
use crate::mlp::Mlp;
use crate::mlp::weights::{Initializer, Model, SaveOptions, Weights, write_atomically};
use crate::reference::Matrix;
use crate::report::quality::Quality;
use crate::train::run_dir::{RECORD, Record};
use crate::train::{Length, Recipe, Replica, Rows};

pub struct Stage<'a> {
    pub gpu: &'a Gpu,
    pub train: &'a Dataset,
    /// The rows to judge on.
    pub test: &'a Dataset,
    /// Folder of the networks.
    folder: Option<PathBuf>,
    pub quiet: bool,
    pub runs: Vec<Trained>,
}

/// What was trained, for the report.
#[derive(Serialize)]
pub struct Trained {
    pub what: String,
    pub networks: usize,
    pub parameters: usize,
    pub epochs: u64,
    /// `None` where the networks were there from before.
    pub seconds: Option<f64>,
}

/// Networks of one shape that train side by side.
pub struct Group<'g> {
    pub what: String,
    /// Of each replica, for its file.
    pub names: Vec<String>,
    pub rows: Rows,
    pub teacher: &'g Teacher,
    pub recipe: Recipe,
    pub replicas: Vec<Replica>,
}

impl<'a> Stage<'a> {
    /// Opens the folder of the reproduction that `plan` names, if one is wanted.
    pub fn open(args: &Args, gpu: &'a Gpu, split: &'a Split, plan: &str) -> Result<Self> {
        let train = &split.train;
        let test = split.test.as_ref().ok_or_else(|| Error::usage("data", "rows to judge on", "none"))?;
        let folder = match &args.out {
            None => None,
            Some(out) => {
                let parts = [("train", train), ("test", test)];
                let data = parts.map(|(name, part)| Ok((name.to_owned(), part.fingerprint()?)));
                let data = data.into_iter().collect::<Result<BTreeMap<_, _>>>()?;
                let record = Record::new(&format!("reproduce {plan}"), gpu, args.seed, data, Vec::new());
                Some(begin(out, &record, args)?)
            }
        };
        Ok(Self { gpu, train, test, folder, quiet: args.json, runs: Vec::new() })
    }

    /// Trains a group, or loads it where it is done.
    pub fn train(&mut self, group: Group<'_>) -> Result<Mlp> {
        let Group { what, names, rows, teacher, recipe, replicas } = group;
        let first = replicas.first().ok_or_else(|| Error::usage("replicas", "at least one", "none"))?;
        let (sizes, parameters) = (first.student.sizes(), first.student.parameters());
        let epochs = match recipe.length {
            Length::Epochs(n) | Length::Steps(n) => n,
        };
        let (networks, seconds) = match self.kept(&names, &sizes)? {
            Some(networks) => (networks, None),
            None => {
                let cohort = Cohort { gpu: self.gpu, train: self.train, let_fall: false, quiet: self.quiet };
                let trained = cohort.train(&what, rows, teacher, recipe, replicas)?;
                self.keep(&trained.students, &names)?;
                (trained.upload(self.gpu)?, Some(trained.seconds))
            }
        };
        self.runs.push(Trained { what, networks: names.len(), parameters, epochs, seconds });
        Ok(networks)
    }

    /// The networks of these names where all are there from before.
    pub fn kept(&self, names: &[String], sizes: &[usize]) -> Result<Option<Mlp>> {
        let files = self.files(names);
        if files.is_empty() || !files.iter().all(|file| file.exists()) {
            return Ok(None);
        }
        let load = |file: &PathBuf| {
            let network = Weights::load(file, None)?;
            match network.sizes() == sizes {
                true => Ok(network),
                false => {
                    Err(Error::data(file, "layers", format!("{sizes:?}"), format!("{:?}", network.sizes())))
                }
            }
        };
        let networks = files.iter().map(load).collect::<Result<Vec<_>>>()?;
        Mlp::upload(self.gpu, "kept", &networks).map(Some)
    }

    /// Writes networks that are done, one file to a replica.
    pub fn keep(&self, networks: &[Weights], names: &[String]) -> Result<()> {
        let files = self.files(names);
        if files.is_empty() {
            return Ok(());
        }
        for (weights, file) in networks.iter().zip(files) {
            Model::trained_on(self.train, weights.clone()).save(&file, SaveOptions::default())?;
        }
        Ok(())
    }

    fn files(&self, names: &[String]) -> Vec<PathBuf> {
        let file = |folder: &PathBuf| names.iter().map(|n| folder.join(format!("{n}.safetensors"))).collect();
        self.folder.as_ref().map(file).unwrap_or_default()
    }

    /// What `teacher` says of the training rows as they are, asked once for all students.
    pub fn targets(&self, teacher: &Mlp) -> Result<Teacher> {
        let answers = Inference::record(self.gpu, teacher, self.train, EVAL_BATCH)?;
        Ok(Teacher::Cached(answers.cache(self.gpu)?))
    }

    /// Logits of each network over the rows to judge on, and what they are worth.
    pub fn judge(&self, networks: &Mlp) -> Result<Vec<(Matrix, Quality)>> {
        let all = logits_of_each(self.gpu, networks, self.test)?;
        all.into_iter().map(|z| self.quality(&z).map(|q| (z, q))).collect()
    }

    /// What logits of the rows to judge on are worth.
    pub fn quality(&self, z: &Matrix) -> Result<Quality> {
        Quality::of(z, self.test.labels.as_deref().unwrap_or_default(), None)
    }

    /// Layers with these hidden ones between the inputs and the classes of the data.
    pub fn layers(&self, hidden: &[usize]) -> Vec<usize> {
        [&[self.train.features()], hidden, &[self.train.classes]].concat()
    }

    /// Fresh weights.
    pub fn start(&self, hidden: &[usize], seed: u64) -> Result<Weights> {
        Weights::init(&self.layers(hidden), Activation::Relu, Initializer::He, seed)
    }
}

/// What all reproductions have in common.
pub fn recipe(batch: usize, epochs: u64, optimizer: Optimizer) -> Recipe {
    Recipe {
        batch,
        accumulate: 1,
        length: Length::Epochs(epochs),
        optimizer,
        shuffle: true,
        log_every: 100,
        guard: Guard::default(),
        features: Vec::new(),
        regularize: Default::default(),
    }
}

/// Makes the folder, with the record of what it is of; gives that of the networks.
fn begin(out: &Path, record: &Record, args: &Args) -> Result<PathBuf> {
    let networks = out.join("networks");
    let path = out.join(RECORD);
    match (path.exists(), args.resume) {
        (true, true) => Record::load(out)?.check_same(record, "resume")?,
        (true, false) if !args.force => {
            return Err(Error::usage(
                "--out",
                "a folder without results",
                format!("{} exists", path.display()),
            )
            .with_hint("choose another folder, go on with --resume, or overwrite with --force"));
        }
        (true, false) if networks.exists() => {
            std::fs::remove_dir_all(&networks).map_err(|e| Error::io("remove", &networks, e))?;
        }
        _ => {}
    }
    std::fs::create_dir_all(&networks).map_err(|e| Error::io("create", &networks, e))?;
    let text = serde_json::to_vec_pretty(record).map_err(|e| Error::io("write", &path, e.into()))?;
    write_atomically(&path, &text)?;
    Ok(networks)
}
