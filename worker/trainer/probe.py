"""The plan tried once: forward and backward of the largest planned row, by the code of a step, before the first one.

Weights, optimizer and random states stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from app.domain.events import Probed
from app.domain.layout import largest_row
from worker.trainer import device_memory
from worker.trainer.batch import Row, rows
from worker.trainer.loop import forward_backward
from worker.trainer.model import Base
from worker.trainer.placement import bytes_to_come, moment_bytes_to_come
from worker.trainer.state import Run, Step


def probe(base: Base, runs: Sequence[Run], row_tokens: int) -> Probed | None:
    """What it took. None for one of several processes that has no example of that step."""
    row = largest_planned_row(runs, row_tokens)
    if row is None:
        return None
    row, states = row.to(base.device), [run.adapter.generator.get_state() for run in runs]
    device_memory.reset_peak(base.device)
    loaded, began = device_memory.used_bytes(base.device), time.monotonic()
    try:
        forward_backward(base, row, {run.id: Step(run, base.device) for run in runs})
        if base.device.type == "cuda":
            torch.cuda.synchronize(base.device)
        seconds, peak = time.monotonic() - began, device_memory.peak_bytes(base.device)
    finally:
        for run, state in zip(runs, states, strict=True):
            run.forget_gradients()
            run.adapter.generator.set_state(state)
    return Probed(
        run_id=runs[0].id,
        row_tokens=len(row.tokens_T),
        seconds=seconds,
        loaded_bytes=loaded + bytes_to_come(runs),
        peak_bytes=peak + moment_bytes_to_come(runs),
    )


def largest_planned_row(runs: Sequence[Run], row_tokens: int) -> Row | None:
    """Of the step that holds one run's largest row; with several runs, of what they then put into it together."""
    shares = [run.share_of(_largest_step(run, row_tokens)) for run in runs]
    return max(rows(shares, row_tokens), key=lambda row: len(row.tokens_T), default=None)


def _largest_step(run: Run, row_tokens: int) -> int:
    return largest_row(run.corpus.lengths(), run.spec.hyperparameters, run.spec.seed, row_tokens)[0]
