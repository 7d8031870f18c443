"""The trainers that Tunery is compared with, and the Python environment of each."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRL_ENVIRONMENT = HERE.parent / ".venv-peer"
TRL_PYTHON = TRL_ENVIRONMENT / "bin/python"
TRL_PACKAGES = ["trl>=1.16", "torch>=2.10", "bitsandbytes>=0.50", "peft>=0.21"]
DEFAULTS = {"micro_batch": 8, "checkpointing": True}
UNSLOTH_SECONDS = 300.0  # its import compiles; one that hangs is not waited for


@dataclass(frozen=True)
class Peer:
    """One row of the table: a script, the Python that runs it, and its options."""

    name: str
    script: str
    python: Path = TRL_PYTHON
    options: dict = field(default_factory=dict)
    is_optional: bool = False  # without it there still is a table

    def command(self, workload: Path, **more: object) -> list[str]:
        return [str(self.python), str(HERE / self.script), str(workload), json.dumps(self.options | more)]


@dataclass(frozen=True)
class Published:
    """What others report of a trainer, for readers without it."""

    name: str
    tokens_per_second: float
    conditions: str
    source: str


PUBLISHED = (
    Published(
        "NeMo AutoModel",
        12_473,
        "Llama 3.1 8B, LoRA in 16 bits, 2 x 4,096 tokens, one H100",
        "docs.nvidia.com/nemo/automodel/latest/performance/performance-summary.html",
    ),
    Published(
        "TRL",
        10_256,
        "Llama 3.1 8B, LoRA in 16 bits, 4 x 1,024 tokens, FlashAttention 2 and Liger, one H100",
        "github.com/MakazhanAlpamys/Soup/issues/78",
    ),
)


def trl(best: dict) -> list[Peer]:
    return [
        Peer("TRL, its defaults", "peer_trl.py", options=DEFAULTS),
        Peer("TRL, its best", "peer_trl.py", options=best),
    ]


def unsloth(device: str, python: Path) -> tuple[list[Peer], str | None]:
    """The two rows of the peer; or none, with the reason."""
    if device != "cuda":
        return [], "Unsloth is left out: it needs an NVIDIA GPU (DEVICE=cuda)."
    if (reason := why_not_importable(python, "unsloth")) is not None:
        return [], f"Unsloth is left out: {python} cannot import it ({reason}). --unsloth-python names one that can."
    rows = (("Unsloth", True), ("Unsloth, keeping all", False))
    return [
        Peer(name, "peer_unsloth.py", python, {"micro_batch": 8, "checkpointing": checkpointing}, is_optional=True)
        for name, checkpointing in rows
    ], None


def why_not_importable(python: Path, package: str) -> str | None:
    """The last line of the error if `python` cannot import `package`; None if it can."""
    try:
        done = subprocess.run(
            [str(python), "-c", f"import {package}"], capture_output=True, text=True, timeout=UNSLOTH_SECONDS
        )
    except OSError as error:
        return error.strerror or "it cannot be started"
    except subprocess.TimeoutExpired:
        return f"not within {UNSLOTH_SECONDS:.0f} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def build_trl(limit_seconds: float | None = None) -> None:
    """Build the environment unless it exists. The limit is that of the installation. Raises SubprocessError."""
    if (TRL_ENVIRONMENT / ".ready").exists():
        return
    print("Building the peer's environment (.venv-peer) ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", TRL_ENVIRONMENT], check=True)
    pip = [TRL_PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    subprocess.run([*pip, *TRL_PACKAGES], check=True, timeout=limit_seconds)
    (TRL_ENVIRONMENT / ".ready").touch()


def versions(python: Path) -> str:
    freeze = [python, "-m", "pip", "list", "--format=freeze"]
    lines = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = ("trl", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "unsloth", "unsloth_zoo")
    return ", ".join(line for line in lines if line.split("==")[0] in wanted)
