"""The probe of a plan: forward and backward of the largest planned batch, with the code of a step, before step 1.

Weights, optimizer and random states stay unchanged.
"""

from __future__ import annotations

import time

from app.domain.jobs.events import Probed
from app.domain.planning.packing import largest_batch
from worker.trainer.adapter.lora import kept_state
from worker.trainer.data.batch import PackedBatch
from worker.trainer.memory.placement import unallocated_bytes, unallocated_moment_bytes
from worker.trainer.objective.objective import Objective
from worker.trainer.training.state import Run


def probe(objective: Objective, run: Run, row_tokens: int) -> Probed | None:
    """Measure time and peak memory. Return None in a process that has no example of that step."""
    batch, kernels = largest_planned_batch(run, row_tokens), objective.base.kernels
    if batch is None:
        return None
    batch = batch.to(kernels.device)
    kernels.memory.reset_peak()
    loaded, started = kernels.memory.used_bytes(), time.monotonic()
    try:
        with kept_state(run.adapter.generator):
            objective.forward_backward(batch)
        kernels.synchronize()
        seconds, peak = time.monotonic() - started, kernels.memory.peak_bytes()
    finally:
        run.clear_gradients()
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
