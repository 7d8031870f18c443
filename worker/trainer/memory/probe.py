"""The probe of a plan: forward and backward of the largest planned batch, with the code of a step, before step 1.

Weights, optimizer and random states stay unchanged.
"""

from __future__ import annotations

import time

import torch

from app.domain.jobs.events import Probed
from app.domain.planning.packing import largest_batch
from worker.trainer.data.batch import PackedBatch
from worker.trainer.memory import device_memory
from worker.trainer.memory.placement import unallocated_bytes, unallocated_moment_bytes
from worker.trainer.objective.objective import Objective
from worker.trainer.training.state import Run


def probe(objective: Objective, run: Run, row_tokens: int) -> Probed | None:
    """Measure time and peak memory. Return None in a process that has no example of that step."""
    batch, device = largest_planned_batch(run, row_tokens), objective.base.device
    if batch is None:
        return None
    batch, state = batch.to(device), run.adapter.generator.get_state()
    device_memory.reset_peak(device)
    loaded, started = device_memory.used_bytes(device), time.monotonic()
    try:
        objective.forward_backward(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds, peak = time.monotonic() - started, device_memory.peak_bytes(device)
    finally:
        run.clear_gradients()
        run.adapter.generator.set_state(state)
    return Probed(
        run_id=run.id,
        row_tokens=len(batch.tokens_T),
        seconds=seconds,
        loaded_bytes=loaded + unallocated_bytes(run),
        peak_bytes=peak + unallocated_moment_bytes(run),
    )


def largest_planned_batch(run: Run, row_tokens: int) -> PackedBatch | None:
    """Return the largest packed batch of the run; None if this process has no example of its step."""
    step, _ = largest_batch(run.dataset.lengths(), run.spec.hyperparameters, run.spec.seed, row_tokens)
    return max(run.batches_of(step, row_tokens), key=lambda batch: len(batch.tokens_T), default=None)
