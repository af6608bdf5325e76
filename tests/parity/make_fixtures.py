"""Writes the fixtures of tests/parity.rs: what Keras and PyTorch themselves compute, on a CPU.

    python3 -m venv venv
    venv/bin/pip install keras==3.15.1 jax==0.10.2 torch==2.15.0 numpy==2.4.6 safetensors==0.8.0
    venv/bin/python tests/parity/make_fixtures.py

Keras runs on JAX. Its Distiller is that of the Keras 3 example (a `compute_loss` override, KLDivergence on
softmaxed logits, T squared) with one difference: the teacher is frozen, which the example forgets. PyTorch runs a
plain loop. Both compute in f32; the fixtures hold the first weights, the order of the rows, the losses of every
step and the last weights.

How the two conventions meet limbeck's:
- Keras's alpha is the weight of the hard loss, 1 - alpha that of the soft one.
- KLDivergence clips both probabilities to [1e-7, 1]. Away from saturation that changes nothing; each case but one
  shows here that no probability of its run came near. The one, keras-clipped, clips in every step, and is held to
  limbeck's loss with that clip.
- Keras's Adam adds epsilon to sqrt(v) before v is corrected for its start at 0, PyTorch's after: limbeck has both.
- SGD's velocity has the learning rate inside in Keras and outside in PyTorch; with a constant rate it is the same.

The single losses are PyTorch's in f64, written from their papers, their gradients autograd's.
"""

import gzip
import json
import os
import pathlib

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"

import keras
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parents[1] / "data" / "optdigits"
SIZES = [64, 48, 10]
STEPS = 60


def idx(name, header):
    return np.frombuffer(gzip.decompress((DATA / name).read_bytes())[header:], np.uint8)


X = idx("optdigits-train-images-idx3-ubyte.gz", 16).reshape(-1, 64).astype(np.float32) * np.float32(1 / 16)
Y = idx("optdigits-train-labels-idx1-ubyte.gz", 8).astype(np.int64)
X_TEST = idx("optdigits-test-images-idx3-ubyte.gz", 16).reshape(-1, 64).astype(np.float32) * np.float32(1 / 16)

TORCH_KINDS = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "gelu": lambda: torch.nn.GELU(approximate="tanh")}
KERAS_KINDS = {"relu": "relu", "tanh": "tanh", "gelu": lambda z: keras.activations.gelu(z, approximate=True)}


def first_weights(sizes, rng):
    """(weight [out, in], bias) pairs."""
    limit = [np.sqrt(6 / i) for i in sizes]
    return [
        (rng.uniform(-l, l, (o, i)).astype(np.float32), rng.uniform(-0.1, 0.1, o).astype(np.float32))
        for l, i, o in zip(limit, sizes, sizes[1:])
    ]


def torch_mlp(layers, activation):
    parts = []
    for weight, bias in layers:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))
        parts += [linear, TORCH_KINDS[activation]()]
    return torch.nn.Sequential(*parts[:-1])


def torch_layers(model):
    linear = [m for m in model if isinstance(m, torch.nn.Linear)]
    return [(m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy()) for m in linear]


def keras_mlp(layers, activation):
    sizes = [w.shape[0] for w, _ in layers]
    model = keras.Sequential([keras.Input((layers[0][0].shape[1],))])
    for i, n in enumerate(sizes):
        model.add(keras.layers.Dense(n, activation=KERAS_KINDS[activation] if i + 1 < len(sizes) else None))
    model.set_weights([a for w, b in layers for a in (w.T, b)])
    return model


def keras_layers(model):
    weights = [np.asarray(w) for w in model.get_weights()]
    return [(w.T.copy(), b) for w, b in zip(weights[::2], weights[1::2])]


class Distiller(keras.Model):
    """The Keras 3 example's, teacher frozen."""

    def __init__(self, student, teacher, alpha, temperature):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.teacher.trainable = False
        self.alpha, self.temperature = alpha, temperature
        self.student_loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.distillation_loss_fn = keras.losses.KLDivergence()

    def call(self, x):
        return self.student(x)

    def parts(self, x, y, y_pred):
        p = keras.ops.softmax(self.teacher(x, training=False) / self.temperature, axis=1)
        q = keras.ops.softmax(y_pred / self.temperature, axis=1)
        # The clip to 1e-7 must not matter.
        smallest = keras.ops.minimum(keras.ops.min(p), keras.ops.min(q))
        return self.student_loss_fn(y, y_pred), self.distillation_loss_fn(p, q) * self.temperature**2, smallest

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        hard, soft, _ = self.parts(x, y, y_pred)
        return self.alpha * hard + (1 - self.alpha) * soft


def run_keras(case, layers, teacher, order):
    keras.utils.set_random_seed(0)
    options = dict(case["optimizer"])
    kind = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[options.pop("kind")]
    options["learning_rate"] = options.pop("lr")
    student = keras_mlp(layers, case["activation"])
    model = Distiller(student, keras_mlp(teacher, "relu"), case["hard_weight"], case["temperature"])
    model.compile(optimizer=kind(**options))
    model.build((None, 64))
    losses, clipped = [], 0
    for rows in batches(order, case["batch"]):
        x, y = X[rows], Y[rows]
        hard, soft, smallest = (float(v) for v in model.parts(x, y, student(x)))
        clipped += smallest < 1e-7
        assert "loss" in case or smallest > 1e-6, f"{case['name']}: a probability of {smallest}, near the clip"
        total = float(model.train_on_batch(x, y))
        assert abs(total - case["hard_weight"] * hard - case["soft_weight"] * soft) < 1e-5 * total
        losses.append([hard, soft, total])
    assert "loss" not in case or clipped == STEPS, f"{case['name']}: only {clipped} steps clip"
    return losses, keras_layers(student)


def run_torch(case, layers, teacher, order):
    student, teacher = torch_mlp(layers, case["activation"]), torch_mlp(teacher, "relu").eval()
    options = dict(case["optimizer"])
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.pop("kind")]
    optimizer = kind(student.parameters(), **options)
    t, losses = case["temperature"], []
    for rows in batches(order, case["batch"]):
        x, y = torch.from_numpy(X[rows]), torch.from_numpy(Y[rows])
        with torch.no_grad():
            v = teacher(x)
        z = student(x)
        hard = F.cross_entropy(z, y, label_smoothing=case.get("smoothing", 0.0))
        if "loss" in case:
            loss, options = LOSSES[case["loss"]]
            soft = torch.stack([loss(*row, t, *options.values()) for row in zip(z, v, y.tolist())]).mean()
        else:
            log_q, log_p = F.log_softmax(z / t, 1), F.log_softmax(v / t, 1)
            soft = t**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        total = case["hard_weight"] * hard + case["soft_weight"] * soft
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append([hard.item(), soft.item(), total.item()])
    return losses, torch_layers(student)


def batches(order, size):
    """Passes over the order, each with a shorter last batch where it does not divide, STEPS in all."""
    starts = range(0, len(order), size)
    for step in range(STEPS):
        start = starts[step % len(starts)]
        yield order[start : start + size]


def alpha(a):
    return {"hard_weight": a, "soft_weight": 1 - a}


CASES = [
    dict(name="keras-sgd-momentum", sizes=[64, 32, 10], activation="relu", batch=64, temperature=10.0, **alpha(0.1),
         optimizer=dict(kind="sgd", lr=0.05, momentum=0.9)),
    dict(name="keras-adam", sizes=[64, 32, 10], activation="relu", batch=32, temperature=10.0, **alpha(0.1),
         optimizer=dict(kind="adam", lr=1e-3)),
    dict(name="keras-adam-tanh", sizes=[64, 24, 16, 10], activation="tanh", batch=48, temperature=3.0, **alpha(0.5),
         optimizer=dict(kind="adam", lr=3e-3, beta_1=0.8, beta_2=0.99, epsilon=1e-4)),
    dict(name="keras-sgd-nesterov-gelu", sizes=[64, 24, 10], activation="gelu", batch=64, temperature=4.0, **alpha(0.9),
         optimizer=dict(kind="sgd", lr=0.02, momentum=0.8, nesterov=True)),
    dict(name="torch-sgd-momentum", sizes=[64, 32, 10], activation="relu", batch=64, temperature=4.0, **alpha(0.1),
         optimizer=dict(kind="sgd", lr=0.05, momentum=0.9)),
    dict(name="torch-sgd-linear", sizes=[64, 10], activation="relu", batch=50, temperature=2.0, **alpha(0.0),
         optimizer=dict(kind="sgd", lr=0.1)),
    dict(name="torch-sgd-nesterov-gelu", sizes=[64, 24, 24, 10], activation="gelu", batch=40, temperature=20.0,
         hard_weight=1.0, soft_weight=2.0, optimizer=dict(kind="sgd", lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3)),
    dict(name="torch-adam-tanh", sizes=[64, 32, 16, 10], activation="tanh", batch=32, temperature=2.0, **alpha(0.5),
         optimizer=dict(kind="adam", lr=1e-3)),
    # 200 rows by 96: the last batch of each pass has 8. Smoothed labels.
    dict(name="torch-adamw-short-batches", sizes=[64, 31, 10], activation="relu", batch=96, rows=200, temperature=3.0,
         smoothing=0.1, **alpha(0.3), optimizer=dict(kind="adamw", lr=2e-3, betas=(0.9, 0.99), weight_decay=0.05)),
    dict(name="torch-adam-labels-only", sizes=[64, 32, 10], activation="relu", batch=64, temperature=1.0, **alpha(1.0),
         optimizer=dict(kind="adam", lr=1e-3, weight_decay=1e-2)),
]


# A student that starts out sure and wrong: q is below the clip where p is not.
CLIPPED = dict(name="keras-clipped", sure=6, sizes=[64, 24, 10], activation="relu", batch=32, temperature=0.5, **alpha(0.1),
               loss="clipped_kl", optimizer=dict(kind="sgd", lr=0.01, momentum=0.9))
SMALL = dict(sizes=[64, 12, 10], activation="relu", batch=32, **alpha(0.5))
LOSS_CASES = [
    dict(name=f"torch-loss-{loss.replace('_', '-')}", loss=loss, temperature=t, **SMALL,
         optimizer=dict(kind="sgd", lr=lr, momentum=0.9))
    for loss, t, lr in [("reverse_kl", 2.0, 0.02), ("symmetric", 3.0, 0.02), ("jsd", 2.0, 0.05), ("dkd", 4.0, 0.005),
                        ("mse", 1.0, 0.02), ("sigmoid", 2.0, 0.005), ("lskd", 2.0, 0.02), ("lskd_dkd", 2.0, 0.01)]
]


def flat(prefix, layers):
    return {f"{prefix}.{i}.{k}": v for i, l in enumerate(layers) for k, v in zip(("weight", "bias"), l)}


def trained_teacher(rng):
    """A few hundred steps on labels: logits that mean something, and no probability near a clip."""
    model = torch_mlp(first_weights(SIZES, rng), "relu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)
    for _ in range(200):
        rows = rng.integers(0, len(X), 64)
        loss = F.cross_entropy(model(torch.from_numpy(X[rows])), torch.from_numpy(Y[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def runs(rng, teacher, cases):
    for case in cases:
        keras_run = case["name"].startswith("keras")
        layers = first_weights(case["sizes"], rng)
        layers[-1] = tuple(v * np.float32(case.get("sure", 1)) for v in layers[-1])
        order = rng.permutation(len(X))[: case.get("rows", STEPS * case["batch"])]
        losses, last = (run_keras if keras_run else run_torch)(case, layers, torch_layers(teacher), order)
        # The frameworks' own defaults, spelt out.
        defaults = dict(momentum=0.0, nesterov=False, weight_decay=0.0)
        if "adam" in case["optimizer"]["kind"]:
            defaults = dict(beta_1=0.9, beta_2=0.999, epsilon=1e-7 if keras_run else 1e-8, weight_decay=0.0)
        options = dict(case["optimizer"])
        if "betas" in options:
            options["beta_1"], options["beta_2"] = options.pop("betas")
        loss = LOSSES[case["loss"]][1] if "loss" in case and not keras_run else {}
        said = dict(smoothing=0.0) | loss | case | dict(framework="keras" if keras_run else "torch", optimizer=defaults | options)
        tensors = flat("first", layers) | flat("last", last)
        tensors |= dict(order=order.astype(np.int32), losses=np.array(losses, np.float64))
        save_file(tensors, HERE / f"{case['name']}.safetensors", {"case": json.dumps(said)})
        print(f"{case['name']:28} loss {losses[0][2]:8.4f} -> {losses[-1][2]:8.4f}")


def models(teacher):
    """The same network as PyTorch and as Keras save it, and what each says of 16 test rows."""
    x = X_TEST[:16]
    save_torch(teacher.state_dict(), HERE / "teacher-torch.safetensors")
    save_file({"logits": teacher(torch.from_numpy(x)).detach().numpy()}, HERE / "teacher-torch-logits.safetensors")
    same = keras_mlp(torch_layers(teacher), "relu")
    save_file({w.path: np.asarray(w.value) for w in same.weights}, HERE / "teacher-keras.safetensors")
    save_file({"logits": np.asarray(same(x))}, HERE / "teacher-keras-logits.safetensors")


def standardised(z):
    return (z - z.mean()) / (z.std(correction=1) + 1e-7)


def kl(log_a, log_b):
    return (log_a.exp() * (log_a - log_b)).sum()


def dkd(z, v, c, t, a, b):
    """Decoupled KD, its 1 - q_c a sum over the others in log space."""
    others = [i for i in range(len(z)) if i != c]
    lq, lp = F.log_softmax(z / t, 0), F.log_softmax(v / t, 0)
    rest_q, rest_p = torch.logsumexp(lq[others], 0), torch.logsumexp(lp[others], 0)
    target = lp[c].exp() * (lp[c] - lq[c]) + rest_p.exp() * (rest_p - rest_q)
    return t**2 * (a * target + b * kl(F.log_softmax(v[others] / t, 0), F.log_softmax(z[others] / t, 0)))


def jsd(z, v, c, t, b):
    lq, lp = F.log_softmax(z / t, 0), F.log_softmax(v / t, 0)
    lm = torch.logaddexp(lp + np.log(b), lq + np.log1p(-b))
    return t**2 * (b * kl(lp, lm) + (1 - b) * kl(lq, lm))


def forward_kl(z, v, c, t):
    return t**2 * kl(F.log_softmax(v / t, 0), F.log_softmax(z / t, 0))


def reverse_kl(z, v, c, t):
    return forward_kl(v, z, c, t)


def sigmoid(z, v, c, t):
    """F.binary_cross_entropy_with_logits less the teacher's entropy: a sum of Bernoulli KLs."""
    p = torch.sigmoid(v / t)
    cross = F.binary_cross_entropy_with_logits(z / t, p, reduction="sum")
    return t**2 * (cross - F.binary_cross_entropy_with_logits(v / t, p, reduction="sum"))


LOSSES = {
    "cross_entropy": (lambda z, v, c, t: F.cross_entropy(z, torch.tensor(c)), {}),
    "label_smoothing": (lambda z, v, c, t, e: F.cross_entropy(z, torch.tensor(c), label_smoothing=e), {"e": 0.1}),
    "forward_kl": (forward_kl, {}),
    "reverse_kl": (reverse_kl, {}),
    "symmetric": (lambda *a: 0.5 * (forward_kl(*a) + reverse_kl(*a)), {}),
    "jsd": (jsd, {"b": 0.3}),
    "dkd": (dkd, {"a": 1.0, "b": 8.0}),
    "mse": (lambda z, v, c, t: F.mse_loss(z, v), {}),
    "sigmoid": (sigmoid, {}),
    "lskd": (lambda z, v, c, t: forward_kl(standardised(z), standardised(v), c, t), {}),
    "lskd_dkd": (lambda z, v, c, t, a, b: dkd(standardised(z), standardised(v), c, t, a, b), {"a": 1.0, "b": 2.0}),
}


def losses(rng):
    lines = []
    for name, (loss, options) in LOSSES.items():
        for k, scale, t in [(3, 1, 1), (10, 3, 4), (10, 3, 0.5), (10, 0.01, 2), (7, 20, 2), (10, 200, 1), (5, 200, 20), (100, 5, 3)]:
            z = torch.tensor(rng.normal(size=k) * scale, dtype=torch.float64).round(decimals=4).requires_grad_()
            v = torch.tensor(rng.normal(size=k) * scale, dtype=torch.float64).round(decimals=4)
            c = int(rng.integers(k))
            value = loss(z, v, c, t, *options.values())
            (gradient,) = torch.autograd.grad(value, z)
            assert torch.isfinite(value) and torch.isfinite(gradient).all(), (name, k, scale, t)
            lines.append(dict(loss=name, **options, temperature=t, label=c, z=z.tolist(), v=v.tolist(),
                              value=value.item(), gradient=gradient.tolist()))
    (HERE / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main():
    rng = np.random.default_rng(20)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    teacher = trained_teacher(rng)
    models(teacher)
    runs(rng, teacher, CASES)
    losses(rng)
    runs(rng, teacher, [*LOSS_CASES, CLIPPED])


main()
