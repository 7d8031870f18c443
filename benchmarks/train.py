"""Tunery's trainer beside TRL's SFTTrainer: `make bench`. Prints one table of ratios, medians over paired runs.

Everything that is compared was measured in this run on this machine, A B A B. See benchmarks/README.md for how.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from app.cli.local.base_model import gguf_file
from app.domain import catalog
from benchmarks.workload import ALPHA, BATCH, RANK, Workload, make_workload
from worker.trainer.device import choose_threads

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEER = ROOT / ".venv-peer"
PEER_PACKAGES = ["trl>=1.16", "torch>=2.10", "bitsandbytes>=0.50", "peft>=0.21"]
DROPPED_STEPS = 3
DEFAULTS = {"micro_batch": 8, "checkpointing": True}
COLUMNS = {"tokens/s": 10, "of bound": 10, "speed ratio": 16, "peak": 9, "ratio": 8, "loss": 9, "valid": 9, "start": 8}


@dataclass
class Measured:
    """One run of one side."""

    step_seconds: list[float] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    validation_loss: float | None = None
    peak_bytes: int = 0
    start_seconds: float = 0.0

    def tokens_per_second(self, work: Workload) -> float:
        """Without the first steps, which warm up, and the last one, in which our trainer also validates."""
        counted = slice(DROPPED_STEPS, len(self.step_seconds) - 1)
        return sum(work.tokens_of_step[counted]) / sum(self.step_seconds[counted])

    def last_losses(self) -> float:
        tail = sorted(self.losses)[-max(1, len(self.losses) // 5) :]
        return statistics.mean(self.losses[step] for step in tail)


def main() -> None:
    options = parse()
    make_peer()
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as directory:
        work = prepare(Path(directory), options)
        best = json.loads(options.best) if options.best else search(work, options)
        compare(work, best, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE / "gsm8k-512.jsonl", help="a chat JSONL file")
    parser.add_argument("--validation", type=Path, default=HERE / "gsm8k-valid-64.jsonl")
    parser.add_argument("--model", type=Path, help="a model directory (default: the bundled 135M model)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--grid-steps", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--best", help="skip the grid: the peer's best options as JSON")
    return parser.parse_args()


def make_peer() -> None:
    if (PEER / ".ready").exists():
        return
    print("Building the peer's environment (.venv-peer) ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", PEER], check=True)
    pip = [PEER / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    subprocess.run([*pip, *PEER_PACKAGES], check=True)
    (PEER / ".ready").touch()


def prepare(directory: Path, options: argparse.Namespace) -> Workload:
    base = options.model or convert(directory / "base")
    work = make_workload(
        directory / "work", base, options.data, options.validation, options.steps, options.learning_rate, options.device
    )
    shapes = catalog.read_tensor_shapes(base)
    entry = catalog.describe(base)
    layers = Counter(
        shape for name, shape in shapes.items() if name.split(".")[-2] in entry.target_modules and len(shape) == 2
    )
    peer = {
        "base": str(base),
        "steps": options.steps,
        "batch_size": BATCH,
        "r": RANK,
        "alpha": ALPHA,
        "learning_rate": options.learning_rate,
        "device": options.device,
        "threads": choose_threads(),
        "tokens_of_step": work.tokens_of_step,
        "labelled_of_step": work.labelled_of_step,
        "layers": [[list(shape), count] for shape, count in layers.items()],
        "head": [entry.vocab_size, entry.hidden_size],
    }
    (work.directory / "peer.json").write_text(json.dumps(peer))
    return work


def convert(destination: Path) -> Path:
    command = [sys.executable, "-m", "worker.trainer.convert", str(gguf_file()), destination]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return destination


def search(work: Workload, options: argparse.Namespace) -> dict:
    """The peer's fastest options out of a small grid, every result printed."""
    print("\nThe peer's grid (real tokens/s):", flush=True)
    results = []
    for candidate in grid():
        try:
            measured = run_peer(work, {**candidate, "steps": options.grid_steps})
        except RuntimeError as error:
            print(f"  {json.dumps(candidate)}: failed ({error})", flush=True)
            continue
        speed = measured.tokens_per_second(work)
        results.append((speed, candidate))
        print(f"  {json.dumps(candidate)}: {speed:,.0f} tokens/s, {gigabytes(measured.peak_bytes)}", flush=True)
    return max(results, key=lambda result: result[0])[1]


def grid() -> list[dict]:
    plain = [
        {"micro_batch": micro_batch, "checkpointing": checkpointing}
        for micro_batch, checkpointing in itertools.product((4, 8), (True, False))
    ]
    return [
        *plain,
        {"micro_batch": 4, "checkpointing": False, "length_groups": True},
        {"micro_batch": 8, "checkpointing": False, "padding_free": True},
        {"micro_batch": 8, "checkpointing": True, "padding_free": True},
    ]


def compare(work: Workload, best: dict, options: argparse.Namespace) -> None:
    rows: dict[str, list[Measured]] = {"Tunery": [], "TRL, its defaults": [], "TRL, its best": []}
    for pair in range(options.pairs):
        last = pair == options.pairs - 1
        rows["Tunery"].append(run_tunery(work, pair))
        rows["TRL, its defaults"].append(run_peer(work, {**DEFAULTS, "validate": last}))
        rows["TRL, its best"].append(run_peer(work, best))
        print(f"pair {pair + 1} of {options.pairs} done", flush=True)
    bound = run_bound(work)
    report(work, rows, best, bound, options)


def run_tunery(work: Workload, number: int) -> Measured:
    directory = work.directory / f"tunery-{number}"
    directory.mkdir()
    (directory / "spec.json").write_text(work.spec.model_dump_json())
    measured = Measured()
    for at, record in watch([sys.executable, "-m", "worker.trainer", str(directory)], measured):
        if record["kind"] == "started":
            measured.start_seconds, previous = at, at
        elif record["kind"] == "metric":
            measured.step_seconds.append(at - previous)
            measured.losses[record["step"]] = record["train_loss"]
            measured.validation_loss = record["full_valid_loss"] or measured.validation_loss
            previous = at
        elif record["kind"] == "failed":
            raise RuntimeError(record["message"])
    return measured


def run_peer(work: Workload, options: dict) -> Measured:
    measured = Measured()
    command = [str(PEER / "bin/python"), str(HERE / "peer_trl.py"), str(work.directory), json.dumps(options)]
    for at, record in watch(command, measured):
        if record["kind"] == "ready":
            measured.start_seconds, previous = at, at
        elif record["kind"] == "step":
            measured.step_seconds.append(at - previous)
            previous = at
        elif record["kind"] == "loss":
            measured.losses[record["step"]] = record["loss"]
        elif record["kind"] == "validation":
            measured.validation_loss = record["loss"]
    return measured


def watch(command: list[str], measured: Measured):
    """(seconds since the start, record) of each JSON line a child prints; its peak memory when it has ended."""
    began = time.monotonic()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, env=environment)
        for line in child.stdout:
            if line.startswith(b"{"):
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # a log line of the peer's
                if "kind" in record:
                    yield time.monotonic() - began, record
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            raise RuntimeError(errors.read().decode(errors="replace").strip().splitlines()[-1])
        measured.peak_bytes = usage.ru_maxrss * 1024


def run_bound(work: Workload) -> float:
    command = [sys.executable, "-m", "benchmarks.bound", str(work.directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["tokens_per_second"]


def report(
    work: Workload, rows: dict[str, list[Measured]], best: dict, bound: float, options: argparse.Namespace
) -> None:
    print(f"\n{machine()}\n{versions()}\nTRL's best: {json.dumps(best)}")
    print(f"{options.data.name}: {sum(work.tokens_of_step):,} tokens in {options.steps} steps of {BATCH} examples\n")
    ours = rows["Tunery"]
    print(" " * 20 + "".join(name.rjust(width) for name, width in COLUMNS.items()))
    for name, runs in rows.items():
        speed = statistics.median(run.tokens_per_second(work) for run in runs)
        paired = [
            us.tokens_per_second(work) / them.tokens_per_second(work) for us, them in zip(ours, runs, strict=True)
        ]
        memory = [us.peak_bytes / them.peak_bytes for us, them in zip(ours, runs, strict=True)]
        spread = f"{statistics.median(paired):.2f} ({min(paired):.2f}-{max(paired):.2f})"
        valid = next((run.validation_loss for run in reversed(runs) if run.validation_loss is not None), None)
        print(
            f"{name:20}{speed:>10,.0f}{speed / bound:>10.0%}{spread:>16}{gigabytes(runs[-1].peak_bytes):>9}"
            f"{statistics.median(memory):>8.2f}{runs[-1].last_losses():>9.4f}"
            f"{'' if valid is None else f'{valid:.4f}':>9}{runs[-1].start_seconds:>7.1f}s"
        )
    print(f"{'matrix products':20}{bound:>10,.0f}\n")
    print("ratio: Tunery's speed over the row's, median of the pairs (least-most); memory: Tunery's over the row's.")
    print("loss: mean of the last fifth of the steps; valid: nats per labelled token of the held-out rows.")


def machine() -> str:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in text]
    return f"{model or platform.processor()}, {os.cpu_count()} CPUs, flags: {', '.join(flags) or 'neither'}"


def versions() -> str:
    lines = subprocess.run(
        [PEER / "bin/python", "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    wanted = ("trl", "torch", "transformers", "peft", "bitsandbytes", "accelerate")
    return ", ".join(line for line in lines if line.split("==")[0] in wanted)


def gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


if __name__ == "__main__":
    main()
