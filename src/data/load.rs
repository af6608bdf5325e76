//! One `load` for every format: looks at what the path is and hands it to the reader.

use std::path::Path;

use super::array::Array;
use super::csv_file::LabelColumn;
use super::named::Keys;
use super::read::SourceFile;
use super::{Dataset, Elements, Split, UNLABELLED, csv_file, idx, npy, npz, safetensors_rows};
use crate::error::{Error, Result};

/// How to read a data set.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The number of classes; `None`: one more than the largest training label, which must then lie below
    /// [`MAX_CLASSES`](super::MAX_CLASSES).
    pub classes: Option<usize>,
    /// Replaces the scale of [`Dataset::normalisation`]: 1/255 for bytes, 1 for everything else.
    pub scale: Option<f32>,
    /// True: rows without labels are an error. False: labels are read where there are some.
    pub require_labels: bool,
    /// The names of the arrays in .npz, .safetensors and folders of .npy.
    pub keys: Keys,
    /// Where a CSV has its labels.
    pub label_column: LabelColumn,
    /// Whether a CSV's first line names its columns; `None`: it does if it differs in kind from the second.
    pub header: Option<bool>,
    /// An uncompressed .npy or IDX file of more bytes stays on disk and is read row by row.
    pub resident_limit: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            classes: None,
            scale: None,
            require_labels: true,
            keys: Keys::default(),
            label_column: LabelColumn::Auto,
            header: None,
            resident_limit: 4 << 30,
        }
    }
}

/// Loads the data set at `path`:
///
/// - a folder with IDX files as MNIST, EMNIST and Fashion-MNIST name them, or one of those files;
/// - a folder with `x_train.npy`, `y_train.npy` and so on, or with `train.csv` and `test.csv`;
/// - `.npz` and `.safetensors` with arrays of those names;
/// - `.npy`, its labels in the sibling named `y…` where it is named `x…`;
/// - `.csv`, `.tsv`: training rows only.
///
/// IDX and .csv may be gzipped.
///
/// Errors name the file and the place in it, and say what to do about formats that need converting.
pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Split> {
    let path = path.as_ref();
    let meta = std::fs::metadata(path).map_err(|e| {
        Error::io("read", path, e).with_hint("check the path; it is relative to the current folder")
    })?;
    let split = if meta.is_dir() { load_folder(path, options) } else { load_file(path, options) }?;
    if options.require_labels && split.train.labels.iter().flatten().all(|&label| label == UNLABELLED) {
        return Err(Error::data(path, "training labels", "at least one label", "none"));
    }
    Ok(split)
}

/// A `.npy` matrix as f32: rows, columns and values, row-major; without the labels that may lie beside it.
///
/// # Errors
/// [`Error::Data`] for anything but two dimensions of finite numbers.
pub fn read_matrix(path: &Path) -> Result<(usize, usize, Vec<f32>)> {
    let (array, _) = Array::open(path, u64::MAX, npy::read_header)?;
    let &[rows, cols] = &array.header.shape[..] else {
        return Err(Error::data(path, "shape", "[rows, columns]", format!("{:?}", array.header.shape)));
    };
    let values = match array.into_rows()?.0 {
        Elements::F32(values) => values,
        Elements::U8(values) => values.into_iter().map(f32::from).collect(),
        Elements::File(_) => unreachable!("opened without a resident limit"),
    };
    Ok((rows, cols, values))
}

fn load_file(path: &Path, options: &LoadOptions) -> Result<Split> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension {
        _ if idx::is_name(path) => idx::load(path, options),
        "npy" => npy::load_file(path, options),
        "npz" => npz::load(path, options),
        "csv" | "tsv" => csv_file::load_file(path, options),
        "gz" if name.ends_with(".csv.gz") || name.ends_with(".tsv.gz") => csv_file::load_file(path, options),
        "safetensors" => safetensors_rows::load(path, options),
        _ => Err(unknown(path, extension)),
    }
}

fn load_folder(path: &Path, options: &LoadOptions) -> Result<Split> {
    if idx::is_folder(path)? {
        idx::load(path, options)
    } else if npy::is_folder(path, options) {
        npy::load_folder(path, options)
    } else if path.join("train.csv").is_file() {
        csv_file::load_folder(path, options)
    } else {
        Err(Error::data(
            path,
            "folder",
            "train-images-idx3-ubyte[.gz] and its companions, x_train.npy, or train.csv",
            "none of them",
        )
        .with_hint("is this the folder the files are in, or one above it?"))
    }
}

fn unknown(path: &Path, extension: &str) -> Error {
    let error = Error::data(
        path,
        "file name",
        "an IDX name such as train-images-idx3-ubyte.gz, or .npy, .npz, .csv, .tsv, .safetensors",
        format!("`.{extension}`"),
    );
    let open = match extension {
        "pt" | "pth" => "import torch, numpy as np; x, y = torch.load(path)",
        "pkl" | "pickle" => "import pickle, numpy as np; x, y = pickle.load(open(path, 'rb'))",
        "h5" | "hdf5" => "import h5py, numpy as np; f = h5py.File(path); x, y = f['x'][:], f['y'][:]",
        "mat" => "import scipy.io, numpy as np; f = scipy.io.loadmat(path); x, y = f['X'], f['y'].ravel()",
        "parquet" => {
            "import pandas, numpy as np; f = pandas.read_parquet(path); y = f.pop('label'); x = f.to_numpy()"
        }
        _ => return error,
    };
    error.with_hint(format!(
        "convert it in Python, with the names it uses:\n    {open}\n    np.savez('data.npz', x_train=x, y_train=y)"
    ))
}

/// Joins features and labels as read into a checked set.
pub(crate) fn dataset(
    (x, x_file): (Array, SourceFile),
    y: Option<(Array, SourceFile)>,
    classes: Option<usize>,
    options: &LoadOptions,
) -> Result<Dataset> {
    let (mut source, mut place) = (vec![x_file], (x.path.clone(), x.at.clone()));
    let (x, shape) = x.into_rows()?;
    let labels = match y {
        None => None,
        Some((y, file)) => {
            if !source.contains(&file) {
                source.push(file);
            }
            place = (y.path.clone(), y.at.clone());
            Some(y.into_labels()?)
        }
    };
    let mut set = Dataset::new(&place.0, x, shape, labels, classes).map_err(|mut e| {
        if let Error::Data { at, .. } = &mut e {
            at.insert_str(0, &place.1);
        }
        e
    })?;
    set.normalisation.scale = options.scale.unwrap_or(set.normalisation.scale);
    set.source = source;
    Ok(set)
}
