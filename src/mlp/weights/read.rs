//! Safetensors in: PyTorch's and Keras's names under any prefix, one file or shards with an index.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::names::{self, Group};
use super::{Layer, Model, Weights, foreign};
use crate::data::Normalisation;
use crate::error::{Error, Result};
use crate::kernels::matmul::Activation;

/// How to read a model.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Of the hidden layers, whatever the metadata say; where neither does, ReLU is assumed.
    pub activation: Option<Activation>,
    /// Weights are stored `[in, out]`, also where their names do not say so (`kernel`, `vars/0`).
    pub keras_kernels: bool,
    /// The layer sizes that the network must have.
    pub sizes: Option<Vec<usize>>,
}

/// A file in memory; tensors are copied out of it one at a time.
struct Shard {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// All tensors of a model: name to shard.
struct Source {
    /// The path that the user gave.
    path: PathBuf,
    shards: Vec<Shard>,
    metadata: HashMap<String, String>,
    index: Option<BTreeMap<String, usize>>,
}

const INDEX: &str = "model.safetensors.index.json";

impl Model {
    /// Reads a `.safetensors` file, a `….safetensors.index.json` with its shards, or a folder with
    /// `model.safetensors`, `student.safetensors` or `model.safetensors.index.json`.
    ///
    /// Tensors are grouped into layers by what precedes `.weight`, `/kernel` and so on, the layers sorted
    /// naturally, and their dimensions must chain. A layer without a bias gets zeros. F32, F16, BF16 and
    /// F64 are read; a value that f32 cannot hold is refused by tensor and element.
    ///
    /// # Errors
    /// [`Error::Data`] naming the tensor, what was found and what was expected; [`Error::Io`].
    pub fn load(path: &Path, options: &ReadOptions) -> Result<Self> {
        let source = Source::open(path)?;
        let file = source.views()?;
        let weights = source.weights(&file, options)?;
        let normalisation = source.normalisation(weights.sizes()[0])?;
        let activation_known = options.activation.is_some() || source.metadata.contains_key("activation");
        let class_names = source.class_names(weights.sizes().last().copied().unwrap_or(0))?;
        Ok(Self { weights, normalisation, class_names, activation_known })
    }
}

impl Weights {
    /// The parameters of [`Model::load`]; `activation` overrides the metadata.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load(path: &Path, activation: Option<Activation>) -> Result<Self> {
        let options = ReadOptions { activation, ..ReadOptions::default() };
        Ok(Model::load(path, &options)?.weights)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| {
        let missing = e.kind() == std::io::ErrorKind::NotFound;
        let error = Error::io("read", path, e);
        if missing { error.with_hint("check the path; it is relative to the current folder") } else { error }
    })
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let mut path = path.to_owned();
        if path.is_dir() {
            let names = ["model.safetensors", "student.safetensors", INDEX];
            let found = names.iter().map(|n| path.join(n)).find(|p| p.is_file());
            path = found.ok_or_else(|| {
                Error::data(&path, "folder", format!("one of {}", names.join(", ")), "none of them")
            })?;
        }
        if path.to_string_lossy().ends_with(".index.json") {
            return Self::sharded(path);
        }
        let bytes = read(&path)?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| foreign::refuse(&path, &bytes[..bytes.len().min(16)], &e.to_string()))?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        Ok(Self { path: path.clone(), shards: vec![Shard { path, bytes }], metadata, index: None })
    }

    /// `{"weight_map": {"fc1.weight": "model-00001-of-00002.safetensors", …}}`, as transformers writes it.
    fn sharded(path: PathBuf) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index: Index = serde_json::from_slice(&read(&path)?).map_err(|e| {
            Error::data(&path, "index", "JSON with a weight_map from tensors to files", e.to_string())
        })?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let (mut shards, mut metadata, mut map) = (Vec::<Shard>::new(), HashMap::new(), BTreeMap::new());
        for (tensor, file) in index.weight_map {
            // An index is data: it must not make us read outside its own folder.
            let mut parts = Path::new(&file).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
                || file.contains('\\')
            {
                return Err(Error::data(
                    &path,
                    format!("weight_map, tensor `{tensor}`"),
                    "the name of a file in the index's own folder",
                    format!("`{file}`"),
                ));
            }
            let at = folder.join(&file);
            let shard = match shards.iter().position(|s| s.path == at) {
                Some(i) => i,
                None => {
                    let bytes = read(&at)?;
                    let (_, own) = SafeTensors::read_metadata(&bytes)
                        .map_err(|e| foreign::refuse(&at, &bytes[..bytes.len().min(16)], &e.to_string()))?;
                    metadata.extend(own.metadata().clone().unwrap_or_default());
                    shards.push(Shard { path: at, bytes });
                    shards.len() - 1
                }
            };
            map.insert(tensor, shard);
        }
        Ok(Self { path, shards, metadata, index: Some(map) })
    }

    /// The shards' headers, checked against their length.
    fn views(&self) -> Result<Vec<SafeTensors<'_>>> {
        self.shards
            .iter()
            .map(|s| {
                SafeTensors::deserialize(&s.bytes)
                    .map_err(|e| foreign::refuse(&s.path, &s.bytes[..s.bytes.len().min(16)], &e.to_string()))
            })
            .collect()
    }

    fn names(&self, files: &[SafeTensors<'_>]) -> Vec<String> {
        match &self.index {
            Some(map) => map.keys().cloned().collect(),
            None => files.iter().flat_map(|f| f.names()).map(|n| n.to_owned()).collect(),
        }
    }

    /// The tensor of that name and the file it is in.
    fn tensor<'f>(&self, files: &'f [SafeTensors<'_>], name: &str) -> Result<(&Path, TensorView<'f>)> {
        let shard = self.index.as_ref().and_then(|map| map.get(name)).copied().unwrap_or(0);
        let path = self.shards[shard].path.as_path();
        let view = files[shard].tensor(name).map_err(|_| {
            Error::data(path, format!("tensor `{name}`"), "a tensor, as the index says", "none of that name")
        })?;
        Ok((path, view))
    }

    fn activation(&self, options: &ReadOptions) -> Result<Activation> {
        match (options.activation, self.metadata.get("activation")) {
            (Some(a), _) => Ok(a),
            (None, Some(name)) => Activation::parse(name).ok_or_else(|| {
                Error::data(
                    &self.path,
                    "metadata `activation`",
                    "relu, tanh, gelu or identity",
                    format!("`{name:.40}`"),
                )
            }),
            (None, None) => Ok(Activation::Relu),
        }
    }

    fn normalisation(&self, inputs: usize) -> Result<Option<Normalisation>> {
        let Some(text) = self.metadata.get("normalisation") else { return Ok(None) };
        let bad = |found: String| {
            Error::data(
                &self.path,
                "metadata `normalisation`",
                format!("JSON with scale, mean and inv_std of {inputs} finite numbers"),
                found,
            )
        };
        let n: Normalisation = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        n.check(inputs).map_err(|e| bad(e.to_string()))?;
        Ok(Some(n))
    }

    fn class_names(&self, outputs: usize) -> Result<Option<Vec<String>>> {
        let Some(text) = self.metadata.get("class_names") else { return Ok(None) };
        let bad = |found: String| {
            let expected = format!("JSON with at most {outputs} names, one per output");
            Error::data(&self.path, "metadata `class_names`", expected, found)
        };
        let names: Vec<String> = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        if names.len() > outputs {
            return Err(bad(format!("{} names", names.len())));
        }
        Ok(Some(names))
    }

    fn weights(&self, files: &[SafeTensors<'_>], options: &ReadOptions) -> Result<Weights> {
        let names = self.names(files);
        let (groups, strangers) = names::layers(&names.iter().map(String::as_str).collect::<Vec<_>>());
        if let Some(name) = strangers.first() {
            return Err(Error::data(
                &self.path,
                format!("tensor `{name:.80}`"),
                "weights and biases of linear layers and nothing else",
                format!("{} tensors of other kinds or names", strangers.len()),
            )
            .with_hint("limbeck runs plain MLPs: linear layers with one activation between them"));
        }
        if groups.is_empty() {
            return Err(Error::data(&self.path, "tensors", "at least one layer's weight", "no tensor"));
        }
        let layers = groups.iter().map(|g| self.layer(files, g, options)).collect::<Result<Vec<_>>>()?;
        self.check_chain(&groups, &layers, options)?;
        Ok(Weights { activation: self.activation(options)?, layers })
    }

    fn layer(&self, files: &[SafeTensors<'_>], group: &Group, options: &ReadOptions) -> Result<Layer> {
        let Some(name) = &group.weight else {
            let bias = group.bias.clone().unwrap_or_default();
            return Err(Error::data(
                &self.path,
                format!("tensor `{bias}`"),
                "a weight beside it",
                "a bias alone",
            ));
        };
        let (path, view) = self.tensor(files, name)?;
        let at = format!("tensor `{name}`");
        let &[rows, cols] = view.shape() else {
            return Err(Error::data(
                path,
                at,
                "two dimensions, a linear layer's",
                format!("shape {:?}", view.shape()),
            )
            .with_hint("limbeck runs plain MLPs: no convolutions, no normalisation layers"));
        };
        let stored = floats(path, &at, &view)?;
        let transposed = options.keras_kernels || group.kernel;
        let (outputs, inputs) = if transposed { (cols, rows) } else { (rows, cols) };
        let weight = if transposed { transpose(&stored, rows, cols) } else { stored };
        let bias = match &group.bias {
            None => vec![0.0; outputs],
            Some(name) => {
                let (path, view) = self.tensor(files, name)?;
                let at = format!("tensor `{name}`");
                // A bias of [1, out] means the same.
                let ones = view.shape().iter().rev().skip(1).all(|d| *d == 1);
                if view.shape().last() != Some(&outputs) || !ones {
                    return Err(Error::data(
                        path,
                        at,
                        format!("shape [{outputs}], the outputs of its weight"),
                        format!("shape {:?}", view.shape()),
                    )
                    .with_hint(TRANSPOSED));
                }
                floats(path, &at, &view)?
            }
        };
        Ok(Layer { outputs, inputs, weight, bias })
    }

    /// Each layer must take what the one before gives, and all of them what the caller wants.
    fn check_chain(&self, groups: &[Group], layers: &[Layer], options: &ReadOptions) -> Result<()> {
        let chains = layers.windows(2).all(|w| w[0].outputs == w[1].inputs);
        let sizes: Vec<usize> =
            layers.iter().take(1).map(|l| l.inputs).chain(layers.iter().map(|l| l.outputs)).collect();
        let wanted = options.sizes.clone().unwrap_or_else(|| sizes.clone());
        let usable = sizes.len() >= 2 && !sizes.contains(&0) && sizes.last() != Some(&1);
        if chains && wanted == sizes {
            return match usable {
                true => Ok(()),
                false => Err(Error::data(
                    &self.path,
                    "layers",
                    "sizes above zero and at least 2 classes",
                    format!("{sizes:?}"),
                )),
            };
        }
        let turned = layers.windows(2).all(|w| w[0].inputs == w[1].outputs)
            && options.sizes.as_ref().is_none_or(|s| s.first() == layers.first().map(|l| &l.outputs));
        let error = Error::data(
            &self.path,
            "layers",
            match &options.sizes {
                Some(wanted) => format!("the network {}", join(wanted)),
                None => "each layer to take what the one before gives".to_owned(),
            },
            format!("\n{}", table(groups, layers, &wanted)),
        );
        let turned = turned && layers.len() > 1;
        Err(error.with_hint(if turned { format!("{TRANSPOSED}; {ORDER}") } else { ORDER.to_owned() }))
    }
}

const TRANSPOSED: &str = "weights stored [in, out], as Keras and Flax do, are read with --keras-kernels";
const ORDER: &str = "layers are taken in the natural order of their names: rename them where that is not the order of the network";

fn join(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("-")
}

/// Found against wanted, a line per layer.
fn table(groups: &[Group], layers: &[Layer], wanted: &[usize]) -> String {
    let mut rows = vec![["layer".to_owned(), "found [out, in]".to_owned(), "wanted".to_owned()]];
    for i in 0..layers.len().max(wanted.len().saturating_sub(1)) {
        let name = groups.get(i).and_then(|g| g.weight.clone()).unwrap_or_else(|| "-".to_owned());
        let found = layers.get(i).map_or("-".to_owned(), |l| format!("[{}, {}]", l.outputs, l.inputs));
        let want = match (wanted.get(i), wanted.get(i + 1)) {
            (Some(inputs), Some(outputs)) => format!("[{outputs}, {inputs}]"),
            _ => "-".to_owned(),
        };
        let mark = if found == want { "" } else { "  <-" };
        rows.push([name, found, format!("{want}{mark}")]);
    }
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let (a, b) = (width(0), width(1));
    let lines: Vec<_> = rows.iter().map(|[x, y, z]| format!("    {x:<a$}  {y:<b$}  {z}")).collect();
    lines.join("\n")
}

fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}

/// The tensor's values as f32.
pub(crate) fn floats(path: &Path, at: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let bytes = view.data();
    let half = |b: &[u8]| [b[0], b[1]];
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes(half(b)).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes(half(b)).to_f32()).collect(),
        Dtype::F64 => {
            let wide = bytes.chunks_exact(8).map(|b| f64::from_le_bytes(std::array::from_fn(|i| b[i])));
            wide.map(|v| v as f32).collect()
        }
        other => return Err(Error::data(path, at, "F32, F16, BF16 or F64", format!("{other:?}"))),
    };
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(Error::data(path, at, "finite numbers", format!("{} at element {i}", values[i]))),
        None => Ok(values),
    }
}
