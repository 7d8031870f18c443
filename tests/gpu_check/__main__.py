"""`make gpu-check`: what only a GPU runs, checked on this machine in at most 30 minutes, and a speed card.

Prints two tables and writes the same as JSON. Every check runs in a process of its own with a limit, so that one that
hangs or spoils the GPU's context does not end the others. Exits with 1 if a check failed, and with 2 if there is no GPU
(--device cpu runs the checks that need none, and the speed card of a tiny model).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.gpu_check import speed_card
from tests.gpu_check.checks import CHECKS, Check, CheckFailed

TOTAL_SECONDS = 1800.0
SPEED_CARD_SECONDS = 900.0  # of the total; what the checks leave of theirs is added
ROOT = Path(__file__).parents[2]
Outcome = tuple[str, str]  # passed, failed or skipped; and what was seen


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="*", choices=[check.name for check in CHECKS], help="no speed card either")
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="where the results are written")
    parser.add_argument("--model", type=Path, help="of the speed card: a directory (default: the bundled 135M model)")
    parser.add_argument("--unsloth-python", type=Path, help="the Python that has Unsloth (default: TRL's own)")
    parser.add_argument("--in-this-process", choices=[check.name for check in CHECKS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.in_this_process:
        (check,) = (each for each in CHECKS if each.name == options.in_this_process)
        print(json.dumps(run_here(check, device)))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no NVIDIA GPU; --device cpu runs the checks that need none.", file=sys.stderr)
        return 2
    started = time.monotonic()
    results = run_checks(device, options.only, TOTAL_SECONDS - SPEED_CARD_SECONDS)
    if not options.only:
        left_seconds = TOTAL_SECONDS - (time.monotonic() - started)
        results["speed"] = speed_card.measure(options.device, options.model, options.unsloth_python, left_seconds)
    options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    return int(any(each["outcome"] == "failed" for each in results["checks"]))


def run_checks(device: torch.device, only: list[str] | None, limit_seconds: float) -> dict[str, Any]:
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
            outcome, seen = run_in_child(check, device, min(check.limit_seconds, ends_at - started))
        seconds = round(time.monotonic() - started, 1)
        checks.append({"check": check.name, "outcome": outcome, "seconds": seconds, "seen": seen})
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "gpus": gpus, "torch": torch.__version__, "checks": checks}


def run_in_child(check: Check, device: torch.device, limit_seconds: float) -> Outcome:
    """Run one check in a process of its own, which is killed after the limit."""
    if limit_seconds <= 0:
        return "failed", "no time was left for it"
    command = [sys.executable, "-m", "tests.gpu_check", "--device", device.type, "--in-this-process", check.name]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        return "failed", f"not finished within {limit_seconds:.0f} s"
    if done.returncode:
        return "failed", f"its process ended with exit code {done.returncode}"
    outcome, seen = json.loads(done.stdout.splitlines()[-1])
    return outcome, seen


def run_here(check: Check, device: torch.device) -> Outcome:
    """Run one check in this process."""
    try:
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as directory:
            return "passed", check.run(device, Path(directory))
    except CheckFailed as error:
        return "failed", str(error)
    except Exception as error:  # a check that breaks is a finding, too
        traceback.print_exc(file=sys.stderr)
        return "failed", f"{type(error).__name__}: {error}"


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown tables for docs/measurements.md."""
    lines = [
        f"{results['device']}, torch {results['torch']}",
        "",
        "| check | outcome | s | seen |",
        "|---|---|---|---|",
    ]
    for each in results["checks"]:
        seen = " ".join(str(each["seen"]).split()).replace("|", "/")
        lines.append(f"| {each['check']} | {each['outcome']} | {each['seconds']} | {seen} |")
    return "\n".join(lines + (["", *speed_card.lines(results["speed"])] if "speed" in results else []))


if __name__ == "__main__":
    sys.exit(main())
