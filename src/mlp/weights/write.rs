//! Safetensors out: PyTorch's layout, or Keras's.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Layer, Model, Weights, write_atomically};
use crate::error::{Error, Result};

/// How numbers are stored. Training and inference always compute in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoredType {
    /// As trained, bit for bit.
    #[default]
    F32,
    /// 5 bits of exponent: rounded to nearest even, up to 65504.
    F16,
    /// 8 bits of exponent, 8 of precision.
    Bf16,
}

impl StoredType {
    /// What safetensors calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// `values` as they are stored, little-endian.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        }
    }

    /// The first value that is finite but too large for the type.
    pub fn overflow(self, values: &[f32]) -> Option<usize> {
        match self {
            Self::F32 => None,
            Self::F16 => values.iter().position(|v| v.is_finite() && !half::f16::from_f32(*v).is_finite()),
            Self::Bf16 => values.iter().position(|v| v.is_finite() && !half::bf16::from_f32(*v).is_finite()),
        }
    }
}

/// The form of a model file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaveOptions {
    /// How numbers are stored.
    pub dtype: StoredType,
    /// Keras: `dense/kernel` `[in, out]`, `dense/bias`, `dense_1/kernel` and so on.
    pub keras: bool,
}

impl Weights {
    /// Writes `layers.{i}.weight` and `layers.{i}.bias` in F32, without a normalisation.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        save(self, [None, None], path, SaveOptions::default())
    }
}

impl Model {
    /// Writes the file whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be written; [`Error::Run`] where a value is too large for
    /// the type.
    pub fn save(&self, path: &Path, options: SaveOptions) -> Result<()> {
        let failed = |e: serde_json::Error| Error::io("write", path, e.into());
        let normalisation = self.normalisation.as_ref().map(serde_json::to_string).transpose();
        let names = self.class_names.as_ref().map(serde_json::to_string).transpose();
        save(&self.weights, [normalisation.map_err(failed)?, names.map_err(failed)?], path, options)
    }
}

fn save(
    weights: &Weights,
    [normalisation, class_names]: [Option<String>; 2],
    path: &Path,
    options: SaveOptions,
) -> Result<()> {
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (i, layer) in weights.layers.iter().enumerate() {
        let (names, shape, values) = form(i, layer, options.keras);
        let parts = [(shape, values.as_slice()), (vec![layer.outputs], layer.bias.as_slice())];
        for (name, (shape, values)) in names.into_iter().zip(parts) {
            if let Some(at) = options.dtype.overflow(values) {
                return Err(Error::Run(format!(
                    "{}: tensor `{name}`: {} at element {at} is too large for {:?}; store F32 or BF16",
                    path.display(),
                    values[at],
                    options.dtype
                )));
            }
            tensors.push((name, shape, options.dtype.encode(values)));
        }
    }
    let sizes = weights.sizes().iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut metadata = BTreeMap::from([
        ("format".to_owned(), if options.keras { "np" } else { "pt" }.to_owned()),
        ("layers".to_owned(), sizes),
        ("activation".to_owned(), weights.activation.name().to_owned()),
        ("producer".to_owned(), format!("limbeck {}", env!("CARGO_PKG_VERSION"))),
    ]);
    for (name, text) in [("normalisation", normalisation), ("class_names", class_names)] {
        metadata.extend(text.map(|text| (name.to_owned(), text)));
    }
    // Not by safetensors::serialize, whose metadata come in another order each time: the same network is
    // the same file.
    let mut header = serde_json::json!({ "__metadata__": metadata });
    let mut bytes = Vec::new();
    for (name, shape, values) in &tensors {
        let start = bytes.len();
        bytes.extend(values);
        header[name] = serde_json::json!({ "dtype": options.dtype.name(), "shape": shape, "data_offsets": [start, bytes.len()] });
    }
    let mut text = header.to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let file = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes].concat();
    write_atomically(path, &file)
}

/// Names of weight and bias, and the weight's shape and values.
fn form(i: usize, layer: &Layer, keras: bool) -> ([String; 2], Vec<usize>, Vec<f32>) {
    if !keras {
        let names = [format!("layers.{i}.weight"), format!("layers.{i}.bias")];
        return (names, vec![layer.outputs, layer.inputs], layer.weight.clone());
    }
    let stem = if i == 0 { "dense".to_owned() } else { format!("dense_{i}") };
    let kernel = (0..layer.inputs)
        .flat_map(|c| (0..layer.outputs).map(move |r| layer.weight[r * layer.inputs + c]))
        .collect();
    ([format!("{stem}/kernel"), format!("{stem}/bias")], vec![layer.inputs, layer.outputs], kernel)
}
