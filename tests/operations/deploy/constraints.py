"""Writes constraints.txt: `python -m tests.operations.deploy.constraints`. Run it with Python 3.11, the oldest one.

pip resolves pyproject.toml from nothing, so what happens to be installed, or pinned already, has no say. torch and what
comes with it stay out: the right build depends on the machine (CPU, CUDA version).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
FILE = ROOT / "constraints.txt"
HEADER = "# Every package but torch and its companions, pinned. `make constraints` writes this file.\n"
NOT_PINNED = re.compile(r"torch|triton|pytorch-triton.*|nvidia-.*|cuda-.*|pip|setuptools|tunery", re.IGNORECASE)


def main() -> None:
    FILE.write_text(render(resolve()), encoding="utf-8")
    print(f"{len(pins(FILE.read_text(encoding='utf-8')))} packages pinned in {FILE.name}")


def resolve() -> dict[str, Any]:
    """pip's report on what it would install into an empty environment; nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    done = subprocess.run(
        [*command, ".[local,worker,hybrids,gguf]", "--group", "dev"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def render(report: dict[str, Any]) -> str:
    found = [(one["metadata"]["name"], one["metadata"]["version"]) for one in report["install"]]
    kept = sorted((name.lower(), version) for name, version in found if not NOT_PINNED.fullmatch(name))
    return HEADER + "".join(f"{name}=={version}\n" for name, version in kept)


def pins(text: str) -> dict[str, str]:
    """What a constraints file pins, by normalized name."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
