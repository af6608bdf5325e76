#!/usr/bin/env python3
"""Times limbeck's distillation step and other frameworks' in turn, and prints one table.

Installs what is pinned here under target/peers on the first run. Needs cargo, Python with venv, and
a quiet machine. A peer that cannot be installed or run gets a line that says what happened.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "target" / "peers"
VENV_PYTHON = WORK / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
EXE = ".exe" if os.name == "nt" else ""
PAIRS = ["hinton", "small"]
# Name: (what it needs installed, its command without the options that all take, what it is).
PEERS = {
    "burn-wgpu": ("burn", ["burn", "wgpu"], "WGSL, the same adapter"),
    "burn-wgpu-512": ("burn", ["burn", "wgpu"], "the same, lavapipe at limbeck's vector width"),
    "burn-vulkan": ("burn-vulkan", ["burn-vulkan", "vulkan"], "SPIR-V, the same adapter"),
    "burn-flex": ("burn", ["burn", "flex"], "CPU"),
    "torch": ("torch", ["torch_step.py"], "eager, fused Adam; CUDA where there is one"),
    "torch-cpu": ("torch", ["torch_step.py", "--device", "cpu"], "eager, fused Adam, CPU"),
    "torch-compile": ("torch", ["torch_step.py", "--compile"], "torch.compile; CUDA where there is one"),
    "keras": ("keras", ["keras_step.py"], "TensorFlow graph, CPU"),
    "keras-xla": ("keras", ["keras_step.py", "--xla"], "TensorFlow with XLA, CPU"),
}
PACKAGES = {"torch": ("torch",), "keras": ("keras", "tensorflow", "numpy")}
# Set on some machines for the sake of an old OpenBLAS; they slow the frameworks down.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class Failed(Exception):
    """What happened, in one line."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def call(command, log, **options):
    """Runs an installing command; its output goes to a file under target/peers."""
    path = WORK / log
    with path.open("w", encoding="utf-8") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, **options).returncode
    if code:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")]
        what = (errors or lines or ["no output"])[0 if errors else -1].strip()
        raise Failed(f"not installed: {what} (target/peers/{log})")


def install_packages(names, args):
    """The pinned requirements of `names`, once for each state of requirements.txt."""
    pins = [
        line.strip()
        for line in (HERE / "requirements.txt").read_text().splitlines()
        if re.split(r"[-=]", line)[0] in names
    ]
    stamp = WORK / f"{names[0]}.{hashlib.sha256(repr(pins).encode()).hexdigest()[:12]}"
    if stamp.exists():
        return
    if args.no_install:
        raise Failed("not installed, and --no-install was given")
    say(f"installing {', '.join(pins)}")
    if not VENV_PYTHON.exists():
        call([sys.executable, "-m", "venv", str(WORK / "venv")], "venv.log")
    call([str(VENV_PYTHON), "-m", "pip", "install", *pins], f"{names[0]}.log")
    stamp.touch()


def build_burn(target, args):
    """burn in release, its lock file as committed; a no-op where it is built."""
    if args.no_install:
        if not burn_program(target).exists():
            raise Failed("not built, and --no-install was given")
        return
    if not shutil.which("cargo"):
        raise Failed("not built: no cargo")
    say(f"building {target} (minutes on the first run)")
    features = ["--features", "vulkan"] if target == "burn-vulkan" else []
    command = ["cargo", "build", "--release", "--locked", "--target-dir", str(WORK / target), *features]
    jobs = ["--jobs", str(args.jobs)] if args.jobs else []
    call([*command, *jobs], f"{target}.log", cwd=HERE / "burn")


def burn_program(target):
    return WORK / target / "release" / f"limbeck-peer-burn{EXE}"


def install(needs, args):
    if needs.startswith("burn"):
        build_burn(needs, args)
    else:
        install_packages(PACKAGES[needs], args)


def last_json(command, env, timeout):
    """Runs `command` and parses the last line it prints."""
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, cwd=WORK)
    except subprocess.TimeoutExpired:
        raise Failed(f"still running after {timeout} s") from None
    except OSError as error:
        raise Failed(str(error)) from None
    lines = done.stdout.strip().splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, ValueError):
        said = [line for line in done.stderr.splitlines() if line.strip()]
        how = f"died of signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise Failed(f"{how}: {said[-1].strip() if said else 'said nothing'}") from None
    if "error" in result:
        panics = [line for line in done.stderr.splitlines() if "panicked at" in line]
        raise Failed(result["error"] + (f" ({panics[0].strip()})" if panics else ""))
    return result


def ours(args, pair):
    """limbeck's own record of the pair, and the adapter."""
    command = [str(args.limbeck), "bench", "step", "--shapes", pair, "--json"]
    for option in ("adapter", "profile"):
        value = getattr(args, option)
        command += [f"--{option}", str(value)] if value else []
    result = last_json(command, os.environ.copy(), args.timeout)
    record = next(r for r in result["records"] if r["bench"] == "step" and r["shape"] == pair)
    return record["steps_per_second"], result["adapter"]


def theirs(name, args, pair, adapter):
    """The peer's line for the pair."""
    program, *options = PEERS[name][1]
    if program.startswith("burn"):
        command = [str(burn_program(program)), *options]
    else:
        command = [str(VENV_PYTHON), str(HERE / program), *options]
    command += ["--pair", pair, "--seconds", str(args.seconds), "--repeat", str(args.repeat)]
    env = {k: v for k, v in os.environ.items() if k not in UNSET}
    if program.startswith("burn"):
        # burn takes the kind of adapter that limbeck took; the table says where it is another.
        kinds = {"software": "Cpu", "discrete": "DiscreteGpu(0)", "integrated": "IntegratedGpu(0)"}
        kind = kinds.get(adapter["kind"], "DefaultDevice")
        env.setdefault("CUBECL_WGPU_DEFAULT_DEVICE", kind)
        if name.endswith("-512"):
            env["LP_NATIVE_VECTOR_WIDTH"] = "512"
        if "MESA_SHADER_CACHE_DIR" not in env:
            # Mesa's shader cache does not tell vector widths apart.
            cache = WORK / f"mesa-{env.get('LP_NATIVE_VECTOR_WIDTH', 'default')}"
            cache.mkdir(exist_ok=True)
            env["MESA_SHADER_CACHE_DIR"] = str(cache)
    return last_json(command, env, args.timeout)


def bare(device):
    """An adapter's name without the width that lavapipe puts into it."""
    return re.sub(r",? ?\d+ bits", "", device)


def first_line(command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def machine(args):
    cpu = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        cpu = re.search(r"model name\s*: (.*)", text)[1]
        cpu += " with AVX-512" if "avx512f" in text else ""
    except (OSError, TypeError):
        if sys.platform == "darwin":
            cpu = first_line(["sysctl", "-n", "machdep.cpu.brand_string"])
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu,
        "cores": usable,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "limbeck": first_line([str(args.limbeck), "--version"]),
        "commit": first_line(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]),
        "rustc": first_line(["rustc", "--version"]),
        "python": platform.python_version(),
    }


def chosen_peers(args, adapter):
    if args.peers:
        return args.peers
    left_out = {"burn-vulkan"}
    lavapipe = "llvmpipe" in adapter["name"] and "512 bits" in adapter["name"]
    if not lavapipe or "LP_NATIVE_VECTOR_WIDTH" in os.environ:
        left_out.add("burn-wgpu-512")
    if not shutil.which("nvidia-smi"):
        left_out.add("torch-cpu")
    return [name for name in PEERS if name not in left_out]


def measure(args):
    host = machine(args)
    if host["load"] is not None and host["load"] > 0.3 * host["cores"]:
        say(f"warning: the machine is busy (load {host['load']} on {host['cores']} cores)")
    rates, lines, errors = {}, {}, {}
    adapter = None
    for pair in args.pairs:
        rate, adapter = ours(args, pair)
        say(f"warm: limbeck {pair} {rate:.1f} steps/s on {adapter['name']}")
    names = chosen_peers(args, adapter)
    for name in names:
        try:
            install(PEERS[name][0], args)
        except Failed as error:
            errors[name] = {pair: str(error) for pair in args.pairs}
    for round_ in range(args.rounds):
        for pair in args.pairs:
            for name in ["limbeck", *names]:
                if pair in errors.get(name, {}):
                    continue
                try:
                    if name == "limbeck":
                        rate = ours(args, pair)[0]
                    else:
                        line = theirs(name, args, pair, adapter)
                        lines.setdefault(name, line)
                        rate = line["steps_per_second"]
                except Failed as error:
                    if name == "limbeck":
                        raise
                    errors.setdefault(name, {})[pair] = str(error)
                    say(f"round {round_ + 1}: {name} {pair}: {error}")
                    continue
                rates.setdefault((name, pair), []).append(rate)
                say(f"round {round_ + 1}: {name} {pair} {rate:.1f} steps/s")
    rows = []
    for name in ["limbeck", *names]:
        line = lines.get(name, {})
        for pair in args.pairs:
            row = {"peer": name, "pair": pair}
            if name == "limbeck":
                row.update(version=host["limbeck"].split()[-1], device=adapter["name"])
            else:
                row.update(version=line.get("version"), device=line.get("device"), what=PEERS[name][2])
            if pair in errors.get(name, {}):
                row["error"] = errors[name][pair]
            else:
                seen = rates[name, pair]
                row.update(steps_per_second=statistics.median(seen), rounds=seen)
                row["ours_over_theirs"] = statistics.median(rates["limbeck", pair]) / row["steps_per_second"]
                same = name == "limbeck" or bare(row["device"] or "") == bare(adapter["name"])
                if "the same adapter" in row.get("what", "") and not same:
                    row["note"] = f"another adapter: {row['device']}"
            rows.append(row)
    return {"schema_version": 1, "machine": host, "adapter": adapter, "rows": rows}


def table(result, pairs):
    """Markdown, one line to a peer."""
    host, adapter = result["machine"], result["adapter"]
    yield f"Machine: {host['cpu']}, {host['cores']} cores, {host['system']}; load at the start {host['load']}."
    yield f"Adapter: {adapter['name']} ({adapter['backend']}, {adapter['kind']}; {adapter['driver']})."
    yield f"limbeck at {host['commit']}, {host['rustc']}; Python {host['python']}."
    yield ""
    heads = [f"{pair}: steps/s | limbeck is" for pair in pairs]
    yield "| | version | on | " + " | ".join(heads) + " |"
    yield "|---|---|---|" + "---:|---:|" * len(pairs)
    notes = {}
    for name in dict.fromkeys(row["peer"] for row in result["rows"]):
        rows = {row["pair"]: row for row in result["rows"] if row["peer"] == name}
        any_row = next(iter(rows.values()))
        what = f" ({any_row['what']})" if "what" in any_row else ""
        cells = [f"{name}{what}", any_row["version"] or "", any_row["device"] or ""]
        for pair in pairs:
            row = rows[pair]
            if "error" in row:
                cells += ["failed", ""]
                notes.setdefault((name, row["error"]), []).append(pair)
            else:
                ratio = "" if name == "limbeck" else f"{row['ours_over_theirs']:.2f}x"
                cells += [f"{row['steps_per_second']:,.1f}", ratio]
            if "note" in row:
                notes.setdefault((name, row["note"]), []).append(pair)
        yield "| " + " | ".join(cells) + " |"
    if notes:
        yield ""
        for (name, what), where in notes.items():
            yield f"- {name}, {' and '.join(where)}: {what}"


def arguments():
    def several(known):
        def parse(text):
            names = text.split(",")
            for name in names:
                if name not in known:
                    raise argparse.ArgumentTypeError(f"`{name}` is none of {', '.join(known)}")
            return names

        return parse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=several(PAIRS), default=PAIRS, metavar="PAIR,...")
    parser.add_argument(
        "--peers", type=several(PEERS), metavar="PEER,...", help=f"of {', '.join(PEERS)}; those that fit by default"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each repeat of a peer (%(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="repeats in a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--timeout", type=int, default=900, help="seconds for one program (%(default)s)")
    parser.add_argument("--limbeck", type=Path, help="the program; default: build it in release")
    parser.add_argument("--adapter", help="limbeck's --adapter")
    parser.add_argument("--profile", type=Path, help="limbeck's --profile")
    parser.add_argument("--jobs", type=int, help="cargo's --jobs")
    parser.add_argument("--no-install", action="store_true", help="run what is installed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main():
    args = arguments()
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        if args.profile:
            args.profile = args.profile.resolve()
        if args.limbeck is None:
            jobs = ["--jobs", str(args.jobs)] if args.jobs else []
            say("building limbeck")
            call(["cargo", "build", "--release", *jobs], "limbeck.log", cwd=ROOT)
            args.limbeck = ROOT / "target" / "release" / f"limbeck{EXE}"
        args.limbeck = args.limbeck.resolve()
        result = measure(args)
    except Failed as error:
        say(f"error: limbeck: {error}")
        return 1
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(table(result, args.pairs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
