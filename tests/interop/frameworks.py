"""limbeck against Keras and PyTorch themselves: their files in, by the lines that our errors print, ours out.

    frameworks.py LIMBECK keras          what CI runs, on the JAX backend
    frameworks.py LIMBECK keras torch    where PyTorch is installed too: its wheel on PyPI brings gigabytes of
                                         CUDA, so CI has files that PyTorch saved instead (tests/parity)
"""

import logging
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from safetensors.numpy import load_file, save_file

LIMBECK = pathlib.Path(sys.argv[1]).resolve()
SIZES = [9, 33, 17, 5]
WORST = {}


def limbeck(*args, code=0):
    done = subprocess.run([LIMBECK, *map(str, args)], capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"limbeck {' '.join(map(str, args))}: exit code {done.returncode}, expected {code}\n{done.stderr}")
    return done.stderr if code else done.stdout


def close(what, got, want, tolerance=1e-5):
    """Relative to the largest number there is; NaN fails."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    error = np.abs(got - want).max() / max(1.0, np.abs(want).max()) if got.shape == want.shape else np.inf
    if not error <= tolerance:
        sys.exit(f"{what}: {got.shape} for {want.shape}, off by {error:.3g}, allowed {tolerance:g}")
    kind = what.split(":")[0]
    WORST[kind] = max(WORST.get(kind, 0.0), error)


def predict(folder, model, activation=None):
    out = folder / "predicted.npy"
    out.unlink(missing_ok=True)
    known = ["--model-activation", activation] if activation else []
    limbeck("predict", "--model", model, "--data", folder / "x.npy", "--out", out, *known)
    return np.load(out)


def by_the_hint(folder, file):
    """Runs the lines of Python that the refusal of `file` prints; the safetensors file that they leave."""
    said = limbeck("predict", "--model", file, "--data", folder / "x.npy", "--out", folder / "no.npy", code=4)
    _, _, lines = said.partition("in Python:\n")
    lines = [line.strip() for line in lines.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("import "):
        sys.exit(f"{file}: no lines of Python in: {said}")
    converted = folder / "model.safetensors"
    converted.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=folder, check=True, capture_output=True)
    return converted


def student(folder, form):
    """A network that limbeck trained, in the given form; its metadata are not needed to load it."""
    limbeck("train", "--data", folder / "data.npz", "--layers", ",".join(map(str, SIZES)), "--activation", "tanh",
            "--epochs", 2, "--out", folder / "run", "--force", "--json")
    file = folder / "form.safetensors"
    limbeck("export", "--model", folder / "run" / "model.safetensors", "--safetensors", file, "--force", *form)
    return file


def with_keras(folder, x):
    import keras

    keras.utils.set_random_seed(0)
    logging.getLogger("absl").setLevel(logging.ERROR)  # .h5 is legacy: that is why it is here
    gelu = lambda z: keras.activations.gelu(z, approximate=True)
    for activation, function in {"relu": "relu", "tanh": "tanh", "gelu": gelu}.items():
        layers = [keras.layers.Dense(n, activation=function, bias_initializer="normal") for n in SIZES[1:-1]]
        layers.append(keras.layers.Dense(SIZES[-1], bias_initializer="normal"))
        model = keras.Sequential([keras.Input((SIZES[0],)), *layers])
        want = model.predict(x, verbose=0)
        file = folder / "keras.safetensors"
        save_file({w.path: np.asarray(w.value) for w in model.weights}, file)
        close(f"Keras, weights by path: {activation}", predict(folder, file, activation), want)
        named = keras.Sequential([keras.Input((SIZES[0],)), *layers], name="teacher_of_mine")
        save_file({w.path: np.asarray(w.value) for w in named.weights}, file)
        close(f"Keras, weights by path: a name, {activation}", predict(folder, file, activation), want)
        if activation == "gelu":
            continue  # A lambda is not saved in a .keras file.
        for name in ("m.keras", "m.h5", "m.weights.h5"):
            saved = folder / name
            model.save_weights(saved) if "weights" in name else model.save(saved)
            close(f"Keras, by the hint: {name}", predict(folder, by_the_hint(folder, saved), activation), want)

    tensors = load_file(student(folder, ["--keras-layout"]))
    model = keras.Sequential([keras.Input((SIZES[0],))])
    for i, n in enumerate(SIZES[1:]):
        name = "dense" if i == 0 else f"dense_{i}"
        model.add(keras.layers.Dense(n, name=name, activation="tanh" if i + 2 < len(SIZES) else None))
    for w in model.weights:
        w.assign(tensors.pop("/".join(w.path.split("/")[-2:])))
    if tensors:
        sys.exit(f"more than a Keras model takes: {list(tensors)}")
    close("Keras reads ours", model.predict(x, verbose=0), predict(folder, folder / "form.safetensors"))


def with_torch(folder, x):
    import torch
    from safetensors.torch import load_file as load, save_file as save, save_model

    torch.manual_seed(0)
    rows = torch.from_numpy(x)
    kinds = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "gelu": lambda: torch.nn.GELU(approximate="tanh")}
    for activation, kind in kinds.items():
        parts = []
        for i, o in zip(SIZES, SIZES[1:]):
            parts += [torch.nn.Linear(i, o), kind()]
        model = torch.nn.Sequential(*parts[:-1]).eval()
        want = model(rows).detach().numpy()
        file = folder / "torch.safetensors"
        save(model.state_dict(), file)
        close(f"PyTorch, state_dict: {activation}", predict(folder, file, activation), want)
        save_model(model, str(file))
        close(f"PyTorch, save_model: {activation}", predict(folder, file, activation), want)
        save(torch.compile(model).state_dict(), file)
        close(f"PyTorch, state_dict: compiled, {activation}", predict(folder, file, activation), want)
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            save({k: v.to(dtype) for k, v in model.state_dict().items()}, file)
            back = torch.nn.Sequential(*parts[:-1])
            exact = {k: v.clone() for k, v in model.state_dict().items()}
            back.load_state_dict({k: v.float() for k, v in load(file).items()})
            close(f"PyTorch, types: {dtype}, {activation}", predict(folder, file, activation), back(rows).detach())
            model.load_state_dict(exact)
        torch.save(model.state_dict(), folder / "m.pt")
        close("PyTorch, by the hint", predict(folder, by_the_hint(folder, folder / "m.pt"), activation), want)

    class Mlp(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(i, o) for i, o in zip(SIZES, SIZES[1:]))

        def forward(self, x):
            for layer in self.layers[:-1]:
                x = torch.tanh(layer(x))
            return self.layers[-1](x)

    file = student(folder, [])
    model = Mlp()
    model.load_state_dict(load(file), strict=True)
    close("PyTorch reads ours", model(rows).detach(), predict(folder, file))


def comparator_can_fail():
    try:
        close("planted", [1.0, np.nan], [1.0, 1.0])
    except SystemExit:
        return
    sys.exit("a NaN passed")


def main():
    comparator_can_fail()
    frameworks = {"keras": with_keras, "torch": with_torch}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        x = rng.normal(size=(41, SIZES[0])).astype(np.float32)
        np.save(folder / "x.npy", x)
        y = np.arange(300) % SIZES[-1]
        more = rng.normal(size=(300, SIZES[0])) + np.eye(SIZES[0])[y]
        np.savez(folder / "data.npz", x_train=more.astype(np.float32), y_train=y)
        for framework in sys.argv[2:]:
            frameworks[framework](folder, x)
    width = max(map(len, WORST))
    for kind, error in WORST.items():
        print(f"{kind:{width}}  within {error:.1e}")


main()
