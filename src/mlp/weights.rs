//! Networks on the host: initial values, and safetensors in and out.
//!
//! Files follow PyTorch: `layers.{i}.weight` `[out, in]` row-major and `layers.{i}.bias` `[out]`,
//! F32, with the architecture in the metadata.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

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

    /// Writes the file whole or not at all: to a temporary file beside it, synced, then renamed.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let views = self.layers.iter().enumerate().flat_map(|(i, l)| {
            [
                (format!("layers.{i}.weight"), vec![l.outputs, l.inputs], &l.weight),
                (format!("layers.{i}.bias"), vec![l.outputs], &l.bias),
            ]
        });
        let views = views.map(|(name, shape, data)| {
            let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(data))
                .expect("the layer's sizes match its values");
            (name, view)
        });
        let sizes = self.sizes().iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let metadata = HashMap::from([
            ("format".to_owned(), "pt".to_owned()),
            ("layers".to_owned(), sizes),
            ("activation".to_owned(), self.activation.name().to_owned()),
            ("producer".to_owned(), format!("limbeck {}", env!("CARGO_PKG_VERSION"))),
        ]);
        let bytes = safetensors::serialize(views, Some(metadata))
            .map_err(|e| Error::io("write", path, std::io::Error::other(e)))?;
        write_atomically(path, &bytes)
    }

    /// Reads a file that [`Weights::save`] or a like-minded tool wrote. `activation` overrides the
    /// metadata; where neither says, ReLU is assumed.
    ///
    /// # Errors
    /// [`Error::Data`] naming the tensor, what was found and what was expected.
    pub fn load(path: &Path, activation: Option<Activation>) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let bad = |at: &str, expected: &str, found: String| Error::data(path, at, expected, found);
        let (_, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| bad("header", "a safetensors file", format!("{e}")).with_hint(CONVERT))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| bad("header", "a safetensors file", format!("{e}")).with_hint(CONVERT))?;
        let named = metadata.metadata().as_ref().and_then(|m| m.get("activation"));
        let activation = match (activation, named) {
            (Some(a), _) => a,
            (None, Some(name)) => Activation::parse(name)
                .ok_or_else(|| bad("metadata `activation`", "relu, tanh, gelu or identity", name.clone()))?,
            (None, None) => Activation::Relu,
        };
        let mut layers: Vec<Layer> = Vec::new();
        loop {
            let (w, b) = (format!("layers.{}.weight", layers.len()), format!("layers.{}.bias", layers.len()));
            let Ok(weight) = file.tensor(&w) else { break };
            let bias = file.tensor(&b).map_err(|_| bad(&b, "a bias beside the weight", "none".to_owned()))?;
            let &[outputs, inputs] = weight.shape() else {
                return Err(bad(&w, "two dimensions [out, in]", format!("shape {:?}", weight.shape())));
            };
            if let Some(before) = layers.last()
                && before.outputs != inputs
            {
                return Err(bad(
                    &w,
                    &format!("[out, {}] after a layer of {} units", before.outputs, before.outputs),
                    format!("shape {:?}", weight.shape()),
                ));
            }
            if bias.shape() != [outputs] {
                return Err(bad(&b, &format!("shape [{outputs}]"), format!("shape {:?}", bias.shape())));
            }
            layers.push(Layer {
                outputs,
                inputs,
                weight: floats(path, &w, &weight)?,
                bias: floats(path, &b, &bias)?,
            });
        }
        let known = 2 * layers.len();
        if layers.is_empty() || file.len() != known {
            let names: Vec<_> = file.names().into_iter().take(8).collect();
            return Err(bad(
                "tensor names",
                "layers.0.weight, layers.0.bias, layers.1.weight, … and nothing else",
                format!("{} tensors: {}", file.len(), names.join(", ")),
            ));
        }
        let weights = Self { activation, layers };
        check_sizes(&weights.sizes())?;
        Ok(weights)
    }
}

const CONVERT: &str = "PyTorch checkpoints convert with: from safetensors.torch import save_file; save_file(model.state_dict(), 'model.safetensors')";

fn floats(path: &Path, name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => {
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        other => return Err(Error::data(path, name, "F32", format!("{other:?}"))),
    };
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(Error::data(path, name, "finite numbers", format!("{} at element {at}", values[at]))),
        None => Ok(values),
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
