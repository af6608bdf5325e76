"""limbeck against safetensors, onnx and onnxruntime: files in, files out, numbers within 1e-5.

Every network is also run here, in f64, by a few lines of NumPy that share nothing with limbeck.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

LIMBECK = pathlib.Path(sys.argv[1]).resolve()
WORST = {}


def limbeck(*args):
    done = subprocess.run([LIMBECK, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"limbeck {' '.join(map(str, args))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def close(what, got, want, tolerance=1e-5):
    """Holds got to want, relative to the largest number there is; NaN fails."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        sys.exit(f"{what}: shape {got.shape}, expected {want.shape}")
    error = np.abs(got - want).max() / max(1.0, np.abs(want).max())
    if not error <= tolerance:
        sys.exit(f"{what}: off by {error:.3g}, allowed {tolerance:g}")
    kind = what.split(":")[0]
    WORST[kind] = max(WORST.get(kind, 0.0), error)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def forward(x, layers, activation):
    """layers: (weight [out, in], bias) pairs."""
    x = x.astype(np.float64)
    for i, (weight, bias) in enumerate(layers):
        x = x @ weight.astype(np.float64).T + bias.astype(np.float64)
        if i + 1 < len(layers):
            x = ACTIVATIONS[activation](x)
    return x


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def predict(folder, *args):
    out = folder / "predicted.npy"
    out.unlink(missing_ok=True)
    limbeck("predict", "--out", out, *args)
    return np.load(out)


def make_data(folder, rng):
    """Three classes of 9 features in odd units, one of them constant; bytes of 4x4 besides."""
    y = np.arange(330) % 3
    x = rng.normal(size=(330, 9)) * np.logspace(-2, 2, 9) + 5
    x[:, :3] += 3 * np.eye(3)[y] * np.logspace(-2, 2, 9)[:3]
    x[:, 4] = 7
    x = x.astype(np.float32)
    np.savez(folder / "data.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    pixels = rng.integers(0, 256, size=(330, 4, 4), dtype=np.uint8)
    np.savez(folder / "bytes.npz", x_train=pixels[:300], y_train=y[:300], x_test=pixels[300:], y_test=y[300:])
    return x[300:], pixels[300:].reshape(30, 16)


def models_in(folder, rng):
    """PyTorch's and Keras's names, as their users save them."""
    x = rng.normal(size=(41, 9)).astype(np.float32)
    np.save(folder / "rows.npy", x)
    sizes = [9, 33, 17, 5]
    layers = [
        (rng.normal(size=(o, i)).astype(np.float32) / np.sqrt(i), rng.normal(size=o).astype(np.float32))
        for i, o in zip(sizes, sizes[1:])
    ]
    layers = [(w.astype(np.float32), b) for w, b in layers]
    names = {
        "sequential": ["0", "2", "4"],
        "compiled": ["_orig_mod.module.fc1", "_orig_mod.module.fc2", "_orig_mod.module.fc10"],
    }
    keras = {
        "path": ("sequential/dense{}/kernel", "sequential/dense{}/bias", ["", "_1", "_2"]),
        "h5": ("layers/dense{}/vars/0", "layers/dense{}/vars/1", ["", "_1", "_2"]),
    }
    file = folder / "foreign.safetensors"
    for activation in ACTIVATIONS:
        want = forward(x, layers, activation)
        args = ["--model", file, "--data", folder / "rows.npy", "--model-activation", activation]
        for name, stems in names.items():
            save_file({f"{s}.{k}": v for s, l in zip(stems, layers) for k, v in zip(("weight", "bias"), l)}, file)
            close(f"PyTorch names: {name} {activation}", predict(folder, *args), want)
        for name, (kernel, bias, stems) in keras.items():
            tensors = {kernel.format(s): np.ascontiguousarray(w.T) for s, (w, _) in zip(stems, layers)}
            tensors |= {bias.format(s): b for s, (_, b) in zip(stems, layers)}
            save_file(tensors, file)
            close(f"Keras names: {name} {activation}", predict(folder, *args), want)
    for dtype in (np.float16, np.float64, ml_dtypes.bfloat16):
        rounded = [(w.astype(dtype), b.astype(dtype)) for w, b in layers]
        save_file({f"{i}.{k}": v for i, l in enumerate(rounded) for k, v in zip(("weight", "bias"), l)}, file)
        want = forward(x, [(w.astype(np.float32), b.astype(np.float32)) for w, b in rounded], "tanh")
        args = ["--model", file, "--data", folder / "rows.npy", "--model-activation", "tanh"]
        close(f"types read: {np.dtype(dtype)}", predict(folder, *args), want)
    # NumPy's other orders and types hold the same rows.
    for name, rows in {
        "Fortran": np.asfortranarray(x),
        "f64": x.astype(np.float64),
        "big-endian": x.astype(">f4"),
        "images": x.reshape(41, 3, 3),
    }.items():
        np.save(folder / "rows.npy", rows)
        close(f"arrays read: {name}", predict(folder, *args), want)


def read_back(file):
    """Layers and normalisation of a file that limbeck wrote, in either layout."""
    with safe_open(file, "np") as f:
        metadata = f.metadata()
    tensors = load_file(file)
    normalisation = json.loads(metadata["normalisation"])
    if any("kernel" in name for name in tensors):
        stems = ["dense" if i == 0 else f"dense_{i}" for i in range(len(tensors) // 2)]
        layers = [(tensors[f"{s}/kernel"].T, tensors[f"{s}/bias"]) for s in stems]
    else:
        layers = [(tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in range(len(tensors) // 2)]
    return layers, normalisation, metadata


def normalise(x, n):
    x = x.astype(np.float64) * n["scale"]
    if "mean" in n:
        x = (x - np.array(n["mean"])) * np.array(n["inv_std"])
    return x


def run_onnx(folder, model, x, activation, opset, soft):
    file = folder / "model.onnx"
    more = ["--softmax"] if soft else []
    limbeck("export", "--model", model, "--onnx", file, "--opset", opset, "--force", *more)
    proto = onnx.load(file)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    if given.name != "x" or output.name != ("probabilities" if soft else "logits"):
        sys.exit(f"onnx: input {given.name}, output {output.name}")
    x = x.astype(np.float32)
    whole = session.run(None, {"x": x})[0]
    close(f"onnx, batch of 1: {activation} {opset}", session.run(None, {"x": x[:1]})[0], whole[:1])
    return whole


def models_out(folder, test_rows, test_bytes):
    for activation in ACTIVATIONS:
        for data, x, sizes, more in [
            ("data.npz", test_rows, "9,21,11,3", ["--standardise"]),
            ("bytes.npz", test_bytes, "16,12,3", []),
        ]:
            out = folder / "out"
            args = ["--data", folder / data, "--layers", sizes, "--activation", activation, "--epochs", 3]
            limbeck("train", *args, *more, "--out", out, "--force", "--json")
            model = out / "model.safetensors"
            z = predict(folder, "--model", model, "--data", folder / data)
            layers, normalisation, metadata = read_back(model)
            if metadata["activation"] != activation or metadata["layers"] != sizes:
                sys.exit(f"metadata: {metadata}")
            want = forward(normalise(x, normalisation), layers, activation)
            close(f"safetensors written: {activation} {data}", z, want)
            for dtype, keras in [("f32", True), ("f16", False), ("bf16", True)]:
                file = folder / "form.safetensors"
                form = ["--dtype", dtype] + (["--keras-layout"] if keras else [])
                limbeck("export", "--model", model, "--safetensors", file, "--force", *form)
                layers, _, _ = read_back(file)
                if layers[0][0].dtype != {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]:
                    sys.exit(f"--dtype {dtype}: {layers[0][0].dtype}")
                want = forward(normalise(x, normalisation), [(w.astype(np.float32), b) for w, b in layers], activation)
                seen = predict(folder, "--model", file, "--data", folder / data)
                close(f"types and layouts written: {dtype} {activation}", seen, want)
            for opset in (13, 17, 20, 21):
                close(f"onnx logits: {activation} {opset} {data}", run_onnx(folder, model, x, activation, opset, False), z)
                soft = run_onnx(folder, model, x, activation, opset, True)
                close(f"onnx probabilities: {activation} {opset} {data}", soft, softmax(z.astype(np.float64)))


def logits_in_and_out(folder):
    """Someone else's logits teach; ours are read by someone else."""
    y = np.load(folder / "data.npz")["y_train"]
    np.save(folder / "forest.npy", (4 * np.eye(3)[y]).astype(np.float64))
    save_file({"logits": (4 * np.eye(3)[y]).astype(np.float16)}, folder / "forest.safetensors")
    hashes = set()
    for source in ("forest.npy", "forest.safetensors"):
        args = ["--data", folder / "data.npz", "--layers", "9,8,3", "--standardise", "--epochs", 2, "--force", "--json"]
        out = limbeck("distill", *args, "--teacher-logits", folder / source, "--out", folder / "student")
        hashes.add(json.loads(out)["weights_sha256"])
    if len(hashes) != 1:
        sys.exit("the same logits as .npy and as .safetensors gave different students")
    model = folder / "student" / "student.safetensors"
    limbeck("logits", "--data", folder / "data.npz", "--teacher", model, "--shards", 3, "--out", folder / "logits")
    shards = sorted((folder / "logits").iterdir())
    ours = np.concatenate([load_file(s)["logits"] for s in shards])
    seen = predict(folder, "--model", model, "--data", folder / "data.npz", "--split", "train")
    close("logit shards", ours, seen)


def main():
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows, pixels = make_data(folder, rng)
        models_in(folder, rng)
        models_out(folder, rows, pixels)
        logits_in_and_out(folder)
    # The comparator can fail.
    try:
        close("planted", [1.0, np.nan], [1.0, 1.0])
    except SystemExit:
        pass
    else:
        sys.exit("a NaN passed")
    width = max(map(len, WORST))
    for kind, error in WORST.items():
        print(f"{kind:{width}}  within {error:.1e}")


main()
