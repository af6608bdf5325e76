//! Model files that limbeck does not read: recognised by their first bytes, then by their name, and
//! answered with the lines of Python that convert them.

use std::path::Path;

use crate::error::Error;

const PYTORCH: &str = "import torch; from safetensors.torch import save_file; m = torch.load('FILE', map_location='cpu')
    save_file({k: v.contiguous() for k, v in (m if isinstance(m, dict) else m.state_dict()).items()}, 'model.safetensors')";
const KERAS: &str = "import keras, numpy as np; from safetensors.numpy import save_file
    save_file({w.path: np.ascontiguousarray(w) for w in keras.models.load_model('FILE').weights}, 'model.safetensors')";
const KERAS_WEIGHTS: &str = "import h5py, numpy as np; from safetensors.numpy import save_file; d = {}
    h5py.File('FILE').visititems(lambda k, v: d.update({k: v[()]}) if isinstance(v, h5py.Dataset) else None); save_file(d, 'model.safetensors')";
const PICKLE: &str =
    "import pickle, numpy as np; from safetensors.numpy import save_file; m = pickle.load(open('FILE', 'rb'))
    save_file({k: np.ascontiguousarray(v) for k, v in m.items()}, 'model.safetensors')";
const NUMPY: &str = "import numpy as np; from safetensors.numpy import save_file
    save_file(dict(np.load('FILE')), 'model.safetensors')";
const ONNX: &str = "import onnx; from onnx import numpy_helper as h; from safetensors.numpy import save_file
    save_file({t.name: h.to_array(t) for t in onnx.load('FILE').graph.initializer}, 'model.safetensors')";

/// What the file is, and how it becomes a safetensors file; `None` for a file that could be one.
fn recognise(start: &[u8], extension: &str, name: &str) -> Option<(&'static str, &'static str)> {
    let hdf5 = ("an HDF5 file", if name.ends_with(".weights.h5") { KERAS_WEIGHTS } else { KERAS });
    let pickle = match extension {
        "pkl" | "pickle" | "joblib" => ("a pickle", PICKLE),
        _ => ("a pickle (an old PyTorch checkpoint)", PYTORCH),
    };
    if start.starts_with(b"\x89HDF\r\n\x1a\n") {
        return Some(hdf5);
    }
    if start.starts_with(b"PK\x03\x04") {
        return Some(match extension {
            "keras" => ("a Keras archive", KERAS),
            "npz" => ("a NumPy archive", NUMPY),
            _ => ("a zip archive, such as torch.save writes", PYTORCH),
        });
    }
    // The opcode PROTO and a protocol: the first two bytes of a pickle since Python 2.3. A safetensors
    // file starts with its header's length, and there `{` follows at byte 8.
    if matches!(start, [0x80, 2..=5, ..]) && start.get(8) != Some(&b'{') {
        return Some(pickle);
    }
    match extension {
        "pt" | "pth" | "ckpt" | "bin" => Some(("a PyTorch checkpoint", PYTORCH)),
        "pkl" | "pickle" | "joblib" => Some(pickle),
        "keras" => Some(("a Keras archive", KERAS)),
        "h5" | "hdf5" => Some(hdf5),
        "npz" => Some(("a NumPy archive", NUMPY)),
        "onnx" => Some(("an ONNX model", ONNX)),
        _ => None,
    }
}

/// The error for a model file that begins with `start` and is no safetensors file (`why` says how the
/// parser put it).
pub(super) fn refuse(path: &Path, start: &[u8], why: &str) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let extension = name.rsplit_once('.').map_or("", |(_, e)| e);
    match recognise(start, extension, &name) {
        Some((found, python)) => Error::data(path, "file type", "a safetensors file", found).with_hint(format!(
            "convert it once, in Python:\n    {}",
            python.replace("FILE", &path.display().to_string())
        )),
        None => Error::data(path, "header", "a whole safetensors file", why)
            .with_hint("the file is truncated, corrupt or of another kind; a safetensors file starts with the length of a JSON header"),
    }
}
