"""Compare Tunery's trainer with TRL's SFTTrainer: `make bench-train`. Prints a table of median ratios of paired runs.

Everything that is compared was measured in this run on this machine, A B A B. See benchmarks/README.md for how.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from app.cli.local_stack.first_run import gguf_file
from app.system import model_files
from benchmarks import peers
from benchmarks.peers import TRL_PYTHON, Peer
from benchmarks.table import DROPPED_STEPS, Measured, gigabytes, report
from benchmarks.workload import ALPHA, BATCH, RANK, Workload, make_workload
from worker.trainer.runtime.device import choose_threads

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MIN_STEPS = DROPPED_STEPS + 2
VALIDATED = ("TRL, its defaults", "Unsloth")  # at the end of their last run


def main() -> None:
    options = parse()
    peers.build_trl()
    others, absent = peers.unsloth(options.device, options.unsloth_python)
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as directory:
        work = prepare(Path(directory), options)
        best = json.loads(options.best) if options.best else search(work, options)
        rows, bounds = compare(work, [*peers.trl(best), *others], options)
        report(work, rows, bounds, best, options.data.name, versions(others), absent)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-train", description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE / "gsm8k-512.jsonl", help="a chat JSONL file")
    parser.add_argument("--validation", type=Path, default=HERE / "gsm8k-valid-64.jsonl")
    parser.add_argument("--model", type=Path, help="a model directory (default: the bundled 135M model)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--unsloth-python", type=Path, default=TRL_PYTHON, help="the Python that has Unsloth, for CUDA (TRL's own)"
    )
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--grid-steps", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--best", help="skip the grid: the peer's best options as JSON")
    options = parser.parse_args()
    if min(options.steps, options.grid_steps) < MIN_STEPS:
        parser.error(f"--steps and --grid-steps must be at least {MIN_STEPS}: the first 3 and the last are not counted")
    return options


def prepare(directory: Path, options: argparse.Namespace) -> Workload:
    base = options.model or convert(directory / "base")
    work = make_workload(
        directory / "work", base, options.data, options.validation, options.steps, options.learning_rate, options.device
    )
    shapes = model_files.read_tensor_shapes(base)
    entry = model_files.read_catalog_entry(base)
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
        "target_modules": sorted(entry.target_modules),
    }
    (work.directory / "peer.json").write_text(json.dumps(peer))
    return work


def convert(destination: Path) -> Path:
    command = [sys.executable, "-m", "worker.trainer.gguf.to_safetensors", str(gguf_file()), destination]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return destination


def search(work: Workload, options: argparse.Namespace) -> dict:
    """The fastest of a small grid of the peer's options; prints every result."""
    print("\nThe peer's grid (real tokens/s):", flush=True)
    results = []
    for candidate in grid():
        try:
            measured = run_peer(work, Peer("TRL", "peer_trl.py", options=candidate), steps=options.grid_steps)
        except RuntimeError as error:
            print(f"  {json.dumps(candidate)}: failed ({error})", flush=True)
            continue
        speed = measured.tokens_per_second()
        results.append((speed, candidate))
        print(f"  {json.dumps(candidate)}: {speed:,.0f} tokens/s, {gigabytes(measured.peak_bytes)}", flush=True)
    return max(results, key=lambda result: result[0])[1]


def grid() -> list[dict]:
    """What its documentation offers for speed. 16 at once and packed rows make larger steps, which is fair to speed."""
    plain = [
        {"micro_batch": micro_batch, "checkpointing": checkpointing}
        for micro_batch, checkpointing in itertools.product((4, 8, 16), (True, False))
    ]
    return [
        *plain,
        {"micro_batch": 4, "checkpointing": False, "length_groups": True},
        {"micro_batch": 8, "checkpointing": False, "padding_free": True},
        {"micro_batch": 8, "checkpointing": True, "padding_free": True},
        {"micro_batch": 1, "checkpointing": False, "packing": True},
    ]


def compare(
    work: Workload, others: list[Peer], options: argparse.Namespace
) -> tuple[dict[str, list[Measured]], list[float]]:
    """Omit an optional peer, with the reason, if one of its runs fails."""
    rows: dict[str, list[Measured]] = {"Tunery": []} | {peer.name: [] for peer in others}
    bounds = []
    for pair in range(options.pairs):
        last = pair == options.pairs - 1
        bounds.append(run_bound(work))
        rows["Tunery"].append(run_tunery(work, pair))
        for peer in [each for each in others if each.name in rows]:
            more = {"validate": True} if last and peer.name in VALIDATED else {}
            try:
                rows[peer.name].append(run_peer(work, peer, **more))
            except RuntimeError as error:
                if not peer.is_optional:
                    raise
                print(f"{peer.name} is left out: {error}", flush=True)
                del rows[peer.name]
        print(f"pair {pair + 1} of {options.pairs} done", flush=True)
    return rows, bounds


def run_tunery(work: Workload, number: int, limit_seconds: float | None = None) -> Measured:
    directory = work.directory / f"tunery-{number}"
    directory.mkdir()
    (directory / "spec.json").write_text(work.spec.model_dump_json())
    measured = Measured()
    for at, record in watch([sys.executable, "-m", "worker.trainer", str(directory)], measured, limit_seconds):
        if record["kind"] == "started":
            measured.start_seconds, previous = at, at
        elif record["kind"] == "metric":
            measured.step_seconds.append(at - previous)
            measured.step_tokens.append(work.tokens_of_step[record["step"] - 1])
            measured.losses[record["step"]] = record["train_loss"]
            measured.cuda_peak_bytes = record["peak_memory_bytes"] if work.spec.device == "cuda" else None
            measured.validation_loss = record["full_valid_loss"] or measured.validation_loss
            previous = at
        elif record["kind"] == "failed":
            raise RuntimeError(record["message"])
    return measured


def run_peer(work: Workload, peer: Peer, limit_seconds: float | None = None, **more: object) -> Measured:
    measured = Measured()
    for at, record in watch(peer.command(work.directory, **more), measured, limit_seconds):
        if record["kind"] == "ready":
            measured.start_seconds, previous = at, at
        elif record["kind"] == "step":
            measured.step_seconds.append(at - previous)
            measured.step_tokens.append(record["tokens"])
            previous = at
        elif record["kind"] == "done":
            measured.cuda_peak_bytes = record["cuda_peak_bytes"]
        elif record["kind"] == "loss":
            measured.losses[record["step"]] = record["loss"]
        elif record["kind"] == "validation":
            measured.validation_loss = record["loss"]
    return measured


def watch(command: list[str], measured: Measured, limit_seconds: float | None = None):
    """(seconds since the start, record) of each JSON line a child prints; its peak memory when it has ended.

    A child that runs longer than the limit is killed. Raises RuntimeError for a child that failed or was killed.
    """
    began = time.monotonic()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, env=environment)
        timer = threading.Timer(limit_seconds, child.kill) if limit_seconds is not None else None
        if timer is not None:
            timer.start()
        with child.stdout:
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
        if timer is not None and timer.finished.is_set() and child.returncode == -signal.SIGKILL:
            raise RuntimeError(f"not finished within {limit_seconds:.0f} s")
        if timer is not None:
            timer.cancel()
        if child.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit code {child.returncode}")
        measured.resident_bytes = usage.ru_maxrss * 1024


def run_bound(work: Workload) -> float:
    command = [sys.executable, "-m", "benchmarks.bound", str(work.directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["tokens_per_second"]


def versions(others: list[Peer]) -> str:
    """One line per environment."""
    pythons = dict.fromkeys([TRL_PYTHON, *(peer.python for peer in others)])
    return "\n".join(peers.versions(python) for python in pythons)


if __name__ == "__main__":
    main()
