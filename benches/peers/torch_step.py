"""One distillation step in PyTorch, timed. Prints one JSON line, with `error` where it failed.

On a machine with a CUDA GPU that PyTorch can use it runs there, otherwise on the CPU.
"""

import argparse
import json
import time

PAIRS = {
    "hinton": ([784, 1200, 1200, 10], [784, 800, 800, 10], 128),
    "small": ([64, 128, 128, 10], [64, 32, 10], 64),
}
ROWS, TEMPERATURE, HARD, SOFT, RATE = 4096, 4.0, 0.1, 0.9, 1e-4


def mlp(torch, sizes):
    layers = []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
        linear = torch.nn.Linear(a, b)
        torch.nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        torch.nn.init.zeros_(linear.bias)
        layers += [linear] + ([torch.nn.ReLU()] if i + 2 < len(sizes) else [])
    return torch.nn.Sequential(*layers)


def run(args):
    import torch
    import torch.nn.functional as F

    yield "version", torch.__version__
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    yield "device", torch.cuda.get_device_name() if device == "cuda" else "cpu"
    yield "threads", torch.get_num_threads() if device == "cpu" else None
    # f32 throughout, as limbeck computes: TF32 is off by default for products, and stays off.
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(5)
    teacher_sizes, student_sizes, batch = PAIRS[args.pair]
    x = (torch.randint(0, 256, (ROWS, teacher_sizes[0])).float() / 255).to(device)
    y = (torch.arange(ROWS) % 10).to(device)
    teacher = mlp(torch, teacher_sizes).to(device).requires_grad_(False)
    student = mlp(torch, student_sizes).to(device)
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE, fused=args.adam == "fused")

    def loss_of(x, y):
        with torch.no_grad():
            log_p = F.log_softmax(teacher(x) / TEMPERATURE, dim=1)
        z = student(x)
        log_q = F.log_softmax(z / TEMPERATURE, dim=1)
        soft = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return HARD * F.cross_entropy(z, y) + SOFT * TEMPERATURE**2 * soft

    if args.compile:
        # On a GPU, CUDA graphs: the small pair is all launches.
        loss_of = torch.compile(loss_of, mode="reduce-overhead" if device == "cuda" else "default")

    done = 0

    def steps(count):
        nonlocal done
        for _ in range(count):
            start = done % (ROWS // batch) * batch
            done += 1
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(x[start : start + batch], y[start : start + batch])
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    first = steps(1).item()
    rates = measure(steps, args)
    last = steps(1).item()
    if not last < first:
        raise RuntimeError(f"the loss went from {first} to {last}")
    yield "steps_per_second", rates[len(rates) // 2]
    yield "rates", rates
    yield "loss", [first, last]


def measure(steps, args):
    """Warms up, then `repeat` times `seconds`; steps per second, sorted."""
    began = time.perf_counter()
    once = 1.0
    while time.perf_counter() - began < min(args.seconds, 2.0):
        t = time.perf_counter()
        steps(10)
        once = (time.perf_counter() - t) / 10
    chunk = max(1, min(1000, int(0.25 * min(args.seconds, 1.0) / once)))
    rates = []
    for _ in range(args.repeat):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < args.seconds:
            steps(chunk)
            count += chunk
        rates.append(count / (time.perf_counter() - began))
    return sorted(rates)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", choices=PAIRS, default="hinton")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each repeat")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="torch.compile on the loss and its gradient")
    parser.add_argument("--adam", choices=["fused", "default"], default="fused")
    args = parser.parse_args()
    line = {"peer": "torch-compile" if args.compile else "torch", "pair": args.pair}
    try:
        line.update(run(args))  # what was yielded before an error stays
    except Exception as error:  # whatever a peer does wrong is its result
        line["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    print(json.dumps(line))


if __name__ == "__main__":
    main()
