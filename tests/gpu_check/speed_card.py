"""The speed card: tokens per second, peak memory and loss of Tunery, TRL and Unsloth on the same rows.

All sides train the same base from the same LoRA weights on the same rows in the same order. The peers get a step's rows
end to end without padding (padding-free), as Tunery packs them, so what differs is the code and not the padding. A
peer that cannot run is absent, with the reason.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import peers, train
from benchmarks.peers import Peer
from benchmarks.table import Measured
from benchmarks.workload import BATCH

STEPS, CPU_STEPS = 40, train.MIN_STEPS
LEARNING_RATE = 2e-4
TRL_BUILD_SECONDS = 420.0  # downloads torch for CUDA
RUN_SECONDS = 240.0  # of one side
MAX_LOSS_DIFFERENCE = 0.01  # of the last fifth of the steps, relative to TRL's
PACKED = {"micro_batch": BATCH, "padding_free": True}


def measure(device: str, model: Path | None, unsloth_python: Path | None, limit_seconds: float) -> dict[str, Any]:
    """Return `rows`, one for each side that ran, and `absent`, the reason for each that did not."""
    ends_at = time.monotonic() + limit_seconds
    rows: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="speed-card-") as directory:
        try:
            work = train.prepare(Path(directory), _options(device, model))
        except Exception as error:
            return {"rows": rows, "absent": {"every side": f"the rows could not be made: {_last_line(error)}"}}
        for name, run in _sides(work, device, unsloth_python, absent, ends_at):
            left_seconds = min(RUN_SECONDS, ends_at - time.monotonic())
            if left_seconds <= 0:
                absent[name] = "no time was left for it"
                continue
            try:
                rows.append(row(name, run(left_seconds)))
            except Exception as error:  # the other sides still run
                absent[name] = _last_line(error)
    return {"rows": rows, "absent": absent, "loss_problem": loss_problem(rows)}


def row(name: str, measured: Measured) -> dict[str, Any]:
    return {
        "name": name,
        "tokens_per_second": round(measured.tokens_per_second(), 1),
        "peak_bytes": measured.peak_bytes,
        "loss": round(measured.last_losses(), 4),
        "start_seconds": round(measured.start_seconds, 1),
    }


def loss_problem(rows: list[dict[str, Any]]) -> str:
    """Compare the losses with Tunery's, as a fast side must learn as much. Returns the difference; empty if small."""
    ours = next((each["loss"] for each in rows if each["name"] == "Tunery"), None)
    differences = [
        f"{each['name']} ends with a loss of {each['loss']:.4f}, Tunery with {ours:.4f}"
        for each in rows
        if ours is not None and not abs(each["loss"] / ours - 1) <= MAX_LOSS_DIFFERENCE
    ]
    return "; ".join(differences)


def lines(card: dict[str, Any]) -> list[str]:
    """Return the card as a Markdown table."""
    ours = next((each for each in card["rows"] if each["name"] == "Tunery"), None)
    table = ["| side | tokens/s | Tunery's speed over it | peak | loss | start |", "|---|---|---|---|---|---|"]
    for each in card["rows"]:
        ratio = f"{ours['tokens_per_second'] / each['tokens_per_second']:.2f}" if ours else ""
        speed, peak = f"{each['tokens_per_second']:,.0f}", f"{each['peak_bytes'] / 1e9:.2f} GB"
        table.append(
            f"| {each['name']} | {speed} | {ratio} | {peak} | {each['loss']:.4f} | {each['start_seconds']} s |"
        )
    absent = [f"Absent: {name}: {reason}" for name, reason in card["absent"].items()]
    return [*table, "", *absent, *filter(None, [card.get("loss_problem")])]


Side = tuple[str, Callable[[float], Measured]]  # a name, and a run within so many seconds


def _sides(
    work: train.Workload, device: str, unsloth_python: Path | None, absent: dict[str, str], ends_at: float
) -> list[Side]:
    sides: list[Side] = [("Tunery", partial(train.run_tunery, work, 0))]
    if device == "cuda":
        with_kernels = replace(work, spec=work.spec.model_copy(update={"cuda_kernels": True}))
        sides.append(("Tunery, TUNERY_CUDA_KERNELS", partial(train.run_tunery, with_kernels, 1)))
    found: list[Peer] = []
    try:
        peers.build_trl(max(1.0, min(TRL_BUILD_SECONDS, ends_at - time.monotonic())))
        options = {"TRL": PACKED | {"checkpointing": True}, "TRL, keeping all": PACKED | {"checkpointing": False}}
        found = [Peer(name, "peer_trl.py", options=each) for name, each in options.items()]
    except (OSError, subprocess.SubprocessError) as error:
        absent["TRL"] = f"its environment could not be built: {_last_line(error)}"
    unsloth, reason = peers.unsloth(device, unsloth_python or peers.TRL_PYTHON)
    if reason is not None:
        absent["Unsloth"] = reason
    packed = [*found, *(replace(each, options=each.options | PACKED) for each in unsloth)]
    return [*sides, *((peer.name, partial(train.run_peer, work, peer)) for peer in packed)]


def _options(device: str, model: Path | None) -> argparse.Namespace:
    here = Path(train.__file__).parent
    return argparse.Namespace(
        model=model,
        data=here / "gsm8k-512.jsonl",
        validation=here / "gsm8k-valid-64.jsonl",
        steps=STEPS if device == "cuda" else CPU_STEPS,
        learning_rate=LEARNING_RATE,
        device=device,
    )


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
