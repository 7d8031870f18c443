"""The speed card: tokens per second, MFU, peak memory and loss of Tunery, TRL and Unsloth on the same rows.

All sides train the same base from the same LoRA weights on the same rows in the same order. The peers get a step's rows
end to end without padding (padding-free), as Tunery packs them, so what differs is the code and not the padding. A peer
that is not installed is absent, with the reason; what is published of it stands below, with the source. MFU is that of
4 FLOP per token and weight, of the peak of the card.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers, train
from benchmarks.peers import Peer
from benchmarks.table import Measured
from benchmarks.workload import BATCH
from tests.gpu_check.model_checks import flop_per_token, mfu, without_template

STEPS, CPU_STEPS = 40, train.MIN_STEPS
LEARNING_RATE = 2e-4
RUN_SECONDS = 240.0  # of one side
MAX_LOSS_DIFFERENCE = 0.01  # of the last fifth of the steps, relative to TRL's
PACKED = {"micro_batch": BATCH, "padding_free": True}


def measure(device: str, model: Path, unsloth_python: Path | None, limit_seconds: float) -> dict[str, Any]:
    """Return `rows`, one for each side that ran, and `absent`, the reason for each that did not."""
    ends_at = time.monotonic() + limit_seconds
    rows: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="speed-card-") as directory:
        try:
            work = train.prepare(Path(directory), _options(device, model, Path(directory)))
        except Exception as error:
            return {"rows": rows, "absent": {"every side": f"the rows could not be made: {_last_line(error)}"}}
        flop = flop_per_token(model)
        for name, run in _sides(work, device, unsloth_python, absent):
            left_seconds = min(RUN_SECONDS, ends_at - time.monotonic())
            if left_seconds <= 0:
                absent[name] = "no time was left for it"
                continue
            try:
                rows.append(row(name, run(left_seconds), flop, device))
            except Exception as error:  # the other sides still run
                absent[name] = _last_line(error)
    return {"rows": rows, "absent": absent, "loss_problem": loss_problem(rows)}


def row(name: str, measured: Measured, flop: float, device: str) -> dict[str, Any]:
    rate = measured.tokens_per_second()
    return {
        "name": name,
        "tokens_per_second": round(rate, 1),
        "mfu": mfu(rate, flop, torch.device(device)),
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
    table = [
        "| side | tokens/s | MFU | Tunery's speed over it | peak | loss | start |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in card["rows"]:
        ratio = f"{ours['tokens_per_second'] / each['tokens_per_second']:.2f}" if ours else ""
        cells = [
            each["name"],
            f"{each['tokens_per_second']:,.0f}",
            "" if each["mfu"] is None else f"{each['mfu']:.1%}",
            ratio,
            f"{each['peak_bytes'] / 1e9:.2f} GB",
            f"{each['loss']:.4f}",
            f"{each['start_seconds']} s",
        ]
        table.append(f"| {' | '.join(cells)} |")
    absent = [f"Absent: {name}: {reason}" for name, reason in card["absent"].items()]
    published = [
        f"Published, not measured here: {each.name} {each.tokens_per_second:,.0f} tokens/s ({each.conditions}; "
        f"{each.source})"
        for each in peers.PUBLISHED
    ]
    return [*table, "", *absent, *published, *filter(None, [card.get("loss_problem")])]


Side = tuple[str, Callable[[float], Measured]]  # a name, and a run within so many seconds


def _sides(work: train.Workload, device: str, unsloth_python: Path | None, absent: dict[str, str]) -> list[Side]:
    sides: list[Side] = [("Tunery", partial(train.run_tunery, work, 0))]
    if device == "cuda":
        with_kernels = replace(work, spec=work.spec.model_copy(update={"cuda_kernels": True}))
        sides.append(("Tunery, TUNERY_CUDA_KERNELS", partial(train.run_tunery, with_kernels, 1)))
    found: list[Peer] = []
    if (reason := peers.why_not_importable(peers.TRL_PYTHON, "trl")) is None:
        options = {"TRL": PACKED | {"checkpointing": True}, "TRL, keeping all": PACKED | {"checkpointing": False}}
        found = [Peer(name, "peer_trl.py", options=each) for name, each in options.items()]
    else:
        absent["TRL"] = f"not installed ({reason}); `make bench-train` builds .venv-peer"
    nemo = peers.why_not_importable(Path(sys.executable), "nemo_automodel")
    absent["NeMo AutoModel"] = "not installed" if nemo else "installed, but this card has no script for it"
    unsloth, reason = peers.unsloth(device, unsloth_python or peers.TRL_PYTHON)
    if reason is not None:
        absent["Unsloth"] = reason
    packed = [*found, *(replace(each, options=each.options | PACKED) for each in unsloth)]
    return [*sides, *((peer.name, partial(train.run_peer, work, peer)) for peer in packed)]


def _options(device: str, model: Path, directory: Path) -> argparse.Namespace:
    """The rows are prompts and completions, so that a base model needs no chat template."""
    here = Path(train.__file__).parent
    return argparse.Namespace(
        model=model,
        data=without_template(here / "gsm8k-512.jsonl", directory),
        validation=without_template(here / "gsm8k-valid-64.jsonl", directory),
        steps=STEPS if device == "cuda" else CPU_STEPS,
        learning_rate=LEARNING_RATE,
        device=device,
    )


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
