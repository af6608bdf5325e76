//! Networks on the host: initial values, and files in and out.
//!
//! Files are safetensors. limbeck writes `layers.{i}.weight` `[out, in]` row-major and
//! `layers.{i}.bias` `[out]`, with architecture and normalisation in the metadata ([`mod@write`]), and
//! reads what PyTorch and Keras users have under any prefix ([`mod@read`]).

mod foreign;
mod names;
pub mod read;
pub mod write;

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::data::{Dataset, Normalisation};
pub use read::ReadOptions;
pub use write::{SaveOptions, StoredType};

use crate::error::{Error, Result};
use crate::kernels::matmul::Activation;
use crate::rng;

/// One layer: `y = x . weight^T + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Rows of the weight.
    pub outputs: usize,
    /// Columns of the weight.
    pub inputs: usize,
    /// `[outputs, inputs]`, row-major.
    pub weight: Vec<f32>,
    /// `[outputs]`
    pub bias: Vec<f32>,
}

/// A network's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Of the hidden layers.
    pub activation: Activation,
    /// First to last.
    pub layers: Vec<Layer>,
}

/// A network as a file holds it: what is done to a row before the first layer belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The parameters.
    pub weights: Weights,
    /// From stored values to inputs; `None`: the file does not say, the data's own scale stands.
    pub normalisation: Option<Normalisation>,
    /// What its outputs are called, first to last, where the data had names.
    pub class_names: Option<Vec<String>>,
    /// False where neither file nor caller named the activation, so that ReLU was assumed.
    pub activation_known: bool,
}

impl Model {
    /// A network that was trained on `data`, with its normalisation and class names.
    pub fn trained_on(data: &Dataset, weights: Weights) -> Self {
        let normalisation = Some(data.normalisation.clone());
        Self { weights, normalisation, class_names: data.class_names.clone(), activation_known: true }
    }
}

/// How initial weights are drawn. Biases start at zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initializer {
    /// Uniform within sqrt(6 / in): He et al. 2015, for ReLU and GELU.
    He,
    /// Uniform within sqrt(6 / (in + out)): Glorot and Bengio 2010, for tanh.
    Glorot,
}

/// The layer sizes that a run can have.
///
/// # Errors
/// [`Error::Usage`] for fewer than two sizes, a size of 0, or fewer than 2 outputs.
pub fn check_sizes(sizes: &[usize]) -> Result<()> {
    let text = || sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    if sizes.len() < 2 || sizes.contains(&0) || sizes.last() == Some(&1) {
        return Err(Error::usage(
            "layers",
            "at least two sizes above zero, the last one at least 2 classes",
            format!("`{}`", text()),
        )
        .with_hint("for example --layers 784,800,800,10"));
    }
    Ok(())
}

impl Weights {
    /// Fresh weights: a pure function of the seed.
    ///
    /// # Errors
    /// As [`check_sizes`].
    pub fn init(sizes: &[usize], activation: Activation, how: Initializer, seed: u64) -> Result<Self> {
        check_sizes(sizes)?;
        let layers = sizes
            .windows(2)
            .enumerate()
            .map(|(i, s)| {
                let (inputs, outputs) = (s[0], s[1]);
                let fan = match how {
                    Initializer::He => inputs,
                    Initializer::Glorot => inputs + outputs,
                };
                let limit = (6.0 / fan as f64).sqrt() as f32;
                let weight = (0..inputs * outputs)
                    .map(|e| {
                        let index = (i as u64) << 32 | e as u64;
                        limit * (2.0 * rng::uniform(seed, rng::stream::INIT, index) - 1.0)
                    })
                    .collect();
                Layer { outputs, inputs, weight, bias: vec![0.0; outputs] }
            })
            .collect();
        Ok(Self { activation, layers })
    }

    /// Layer sizes, inputs first.
    pub fn sizes(&self) -> Vec<usize> {
        let inputs = self.layers.first().map(|l| l.inputs);
        inputs.into_iter().chain(self.layers.iter().map(|l| l.outputs)).collect()
    }

    /// Weights and biases together.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(|l| l.weight.len() + l.bias.len()).sum()
    }

    /// SHA-256 over sizes and values: the same weights, the same text.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for size in self.sizes() {
            hash.update((size as u64).to_le_bytes());
        }
        for layer in &self.layers {
            hash.update(bytemuck::cast_slice(&layer.weight));
            hash.update(bytemuck::cast_slice(&layer.bias));
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// Writes `bytes` to a temporary file in the target's folder, syncs it and renames it into place.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be written or is full; the old file, if any, stays.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |e| Error::io("write", path, e);
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}
