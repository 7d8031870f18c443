"""`make gpu-check MODEL=DIRECTORY`: proves the path of a GPU on this machine in at most 30 minutes, with a speed card.

Prints two tables and writes the same as JSON. Every check runs in a process of its own with a limit, so that one that
hangs or spoils the GPU's context does not end the others. A failed check says what was seen, what is allowed and what
to do. Exits with 1 if a check failed, and with 2 if there is no GPU: --device cpu runs the same list on a tiny model.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from app.cli.local_stack.first_run import gguf_file
from benchmarks.train import convert
from tests.gpu_check import speed_card
from tests.gpu_check.check import Check, CheckFailed, Seen, Site, shown, threads_of
from tests.gpu_check.checks import CHECKS
from tests.tiny import make_tiny_base
from worker.trainer.runtime.device import make_repeatable

TOTAL_SECONDS = 1800.0
SPEED_CARD_SECONDS = 450.0  # of the total; what the checks leave of theirs is added
CPU_LIMIT_SECONDS = 300.0  # of each check: the cores may be shared, and nothing is measured
TF32_VARIABLE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"  # some images set it; the trainer must not heed it
Outcome = tuple[str, Seen]  # passed, failed or skipped; and what was seen


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", type=Path, help="a base model, 8B by design (default: a small one)")
    parser.add_argument("--only", nargs="*", choices=[check.name for check in CHECKS], help="no speed card either")
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="where the results are written")
    parser.add_argument("--unsloth-python", type=Path, help="the Python that has Unsloth (default: TRL's own)")
    options = parser.parse_args()
    if options.model and not (options.model / "config.json").is_file():
        parser.error(f"--model: {options.model} has no config.json; name the directory of a base model")
    if not os.access(options.json.absolute().parent, os.W_OK):
        parser.error(f"--json: {options.json.absolute().parent} cannot be written; name a file in another directory")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no NVIDIA GPU (`tunery doctor` says why); --device cpu runs the same list.", file=sys.stderr)
        return 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as directory:
        model = options.model.resolve() if options.model else _default_model(options.device, Path(directory))
        results = run_checks(torch.device(options.device), model, options.only, TOTAL_SECONDS - SPEED_CARD_SECONDS)
        if not options.only:
            left_seconds = TOTAL_SECONDS - (time.monotonic() - started)
            results["speed"] = speed_card.measure(options.device, model, options.unsloth_python, left_seconds)
    results["seconds"] = round(time.monotonic() - started)
    print(table(results))
    options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return int(any(each["outcome"] == "failed" for each in results["checks"]))


def run_checks(device: torch.device, model: Path, only: list[str] | None, limit_seconds: float) -> dict[str, Any]:
    """Run the checks that this device allows. Returns the machine, and each check with its outcome."""
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    checks, ends_at = [], time.monotonic() + limit_seconds
    for check in CHECKS:
        if only and check.name not in only:
            continue
        started = time.monotonic()
        if check.needs_gpus > gpus:
            outcome, seen = "skipped", f"needs {check.needs_gpus} GPUs, there are {gpus}"
        else:
            limit = min(check.limit_seconds, ends_at - started) if gpus else CPU_LIMIT_SECONDS
            outcome, seen = run_in_child(check, device, model, limit)
        seconds = round(time.monotonic() - started, 1)
        print(f"{check.name}: {outcome}, {seconds} of {check.limit_seconds:.0f} s", flush=True)
        checks.append(
            {"check": check.name, "outcome": outcome, "seconds": seconds, "limit": check.limit_seconds, "seen": seen}
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "gpus": gpus, "torch": torch.__version__, "model": model.name, "checks": checks}


def run_in_child(check: Check, device: torch.device, model: Path, limit_seconds: float) -> Outcome:
    """Run one check in a process of its own, which is killed after the limit.

    On a CPU it is a fork, which need not import torch again; CUDA cannot be used in one.
    """
    if limit_seconds <= 0:
        return "failed", "no time was left for it"
    context = multiprocessing.get_context("spawn" if device.type == "cuda" else "fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=run_here, args=(check, device, model, sender))
    os.environ[TF32_VARIABLE] = "1"
    child.start()
    del os.environ[TF32_VARIABLE]
    sender.close()
    try:
        if not receiver.poll(limit_seconds):
            child.kill()
            return "failed", f"not finished within {limit_seconds:.0f} s"
        outcome: Outcome = receiver.recv()
        return outcome
    except EOFError:
        child.join()
        return "failed", f"its process ended with exit code {child.exitcode}"
    finally:
        child.join()


def run_here(check: Check, device: torch.device, model: Path, sender: Connection) -> None:
    """Run one check in this process, and send the outcome."""
    try:
        make_repeatable(device, threads_of(device))
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as directory:
            sender.send(("passed", check.run(Site(device, Path(directory), model))))
    except CheckFailed as error:
        sender.send(("failed", str(error)))
    except Exception as error:  # a check that breaks is a finding, too
        traceback.print_exc(file=sys.stderr)
        sender.send(("failed", f"{type(error).__name__}: {error}"))


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown tables for docs/how-it-works/measurements.md."""
    lines = [
        f"{results['device']}, torch {results['torch']}, {results['model']}",
        "",
        "| check | outcome | s | of | seen |",
        "|---|---|---|---|---|",
    ]
    for each in results["checks"]:
        seen = shown(each["seen"]).replace("|", "/")
        lines.append(f"| {each['check']} | {each['outcome']} | {each['seconds']} | {each['limit']:.0f} | {seen} |")
    if "speed" in results:
        lines += ["", *speed_card.lines(results["speed"])]
    return "\n".join([*lines, "", f"{results['seconds']} s in all, {TOTAL_SECONDS:.0f} are allowed."])


def _default_model(device: str, directory: Path) -> Path:
    if device == "cpu" or gguf_file() is None:
        return make_tiny_base(directory / "tiny")
    return convert(directory / "bundled")


if __name__ == "__main__":
    sys.exit(main())
