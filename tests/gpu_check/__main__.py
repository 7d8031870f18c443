"""`make gpu-check`: what only a GPU runs, checked on this machine in at most 30 minutes.

Prints a table and writes the same as JSON. Exits with 1 if a check failed, and with 2 if there is no GPU (--device cpu
runs the checks that need none).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.gpu_check.checks import CHECKS, CheckFailed


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="*", choices=[check.name for check in CHECKS])
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="where the results are written")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no NVIDIA GPU; --device cpu runs the checks that need none.", file=sys.stderr)
        return 2
    results = run_checks(torch.device(options.device), options.only)
    options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    return int(any(each["outcome"] == "failed" for each in results["checks"]))


def run_checks(device: torch.device, only: list[str] | None = None) -> dict[str, Any]:
    """Run the checks that this device allows. Returns the machine, and each check with its outcome."""
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    checks = []
    for check in CHECKS:
        if only and check.name not in only:
            continue
        started, outcome = time.monotonic(), "passed"
        if check.needs_gpus > gpus:
            outcome, seen = "skipped", f"needs {check.needs_gpus} GPUs, there are {gpus}"
        else:
            try:
                with tempfile.TemporaryDirectory(prefix="gpu-check-") as directory:
                    seen = check.run(device, Path(directory))
            except CheckFailed as error:
                outcome, seen = "failed", str(error)
            except Exception as error:  # the other checks still run
                traceback.print_exc(file=sys.stderr)
                outcome, seen = "failed", f"{type(error).__name__}: {error}"
        seconds = round(time.monotonic() - started, 1)
        checks.append({"check": check.name, "outcome": outcome, "seconds": seconds, "seen": seen})
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "gpus": gpus, "torch": torch.__version__, "checks": checks}


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table for docs/LOG.md."""
    lines = [
        f"{results['device']}, torch {results['torch']}",
        "",
        "| check | outcome | s | seen |",
        "|---|---|---|---|",
    ]
    for each in results["checks"]:
        seen = " ".join(str(each["seen"]).split()).replace("|", "/")
        lines.append(f"| {each['check']} | {each['outcome']} | {each['seconds']} | {seen} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
