"""The plan tried once: forward and backward of the largest planned batch, by the code of a step, before the first one.

Weights, optimizer and random states stay as they are.
"""

from __future__ import annotations

import time

import torch

from app.domain.jobs.events import Probed
from app.domain.planning.packing import largest_row
from worker.trainer.data.batch import PackedBatch
from worker.trainer.memory import device_memory
from worker.trainer.memory.placement import bytes_to_come, moment_bytes_to_come
from worker.trainer.objective.objective import Objective
from worker.trainer.state import Run


def probe(objective: Objective, run: Run, row_tokens: int) -> Probed | None:
    """Measure time and memory. None for one of several processes that has no example of that step."""
    batch, device = largest_planned_batch(run, row_tokens), objective.base.device
    if batch is None:
        return None
    batch, state = batch.to(device), run.adapter.generator.get_state()
    device_memory.reset_peak(device)
    loaded, began = device_memory.used_bytes(device), time.monotonic()
    try:
        objective.forward_backward(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds, peak = time.monotonic() - began, device_memory.peak_bytes(device)
    finally:
        run.clear_gradients()
        run.adapter.generator.set_state(state)
    return Probed(
        run_id=run.id,
        row_tokens=len(batch.tokens_T),
        seconds=seconds,
        loaded_bytes=loaded + bytes_to_come(run),
        peak_bytes=peak + moment_bytes_to_come(run),
    )


def largest_planned_batch(run: Run, row_tokens: int) -> PackedBatch | None:
    """Return the largest batch of the step that has the largest batch of all."""
    step, _ = largest_row(run.dataset.lengths(), run.spec.hyperparameters, run.spec.seed, row_tokens)
    return max(run.batches(row_tokens, step), key=lambda batch: len(batch.tokens_T), default=None)
