"""Overflow in float16, whose largest number is 65,504. A step that is not finite changes nothing; then it is

repeated with a smaller loss scale   if only the gradient is not finite; the gradient is divided by the scale in
                                     float32, so that every example is trained as before
skipped                              if the loss is not finite, or the smallest scale did not help: its examples are
                                     not trained, as with torch's GradScaler
the end of the run                   after MAX_SKIPPED_STEPS in a row, and always in other dtypes, which have the
                                     range of float32
"""

from __future__ import annotations

import math

import torch

from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy
from worker.trainer.runtime.records import RecordWriter
from worker.trainer.training.state import StepResult

LOSS_SCALE_FACTOR = 2.0**-4
MIN_LOSS_SCALE = 2.0**-12
MAX_SKIPPED_STEPS = 3


def recover(result: StepResult, policy: OutOfMemoryPolicy, dtype: torch.dtype, emit: RecordWriter) -> bool:
    """If the step was not finite: prepare its repetition, or skip it, with an event. Return whether one was possible.

    All processes of a job have the same sums, so they decide the same.
    """
    if result.is_finite or dtype != torch.float16:
        return False
    run, number, scale = result.run, result.run.step + 1, policy.plan.loss_scale
    seen = f"Step {number} has the loss {result.loss:.4g} and the gradient norm {result.grad_norm:.4g} in float16"
    if math.isfinite(result.loss) and scale > MIN_LOSS_SCALE:
        scale *= LOSS_SCALE_FACTOR
        policy.plan = policy.plan.model_copy(update={"loss_scale": scale})
        text = f"{seen}. It is repeated with the loss scaled by 1/{1 / scale:,.0f}, which does not change the result."
        emit.message(text, "warn", step=number, loss_scale=scale)
    elif run.skipped_steps < MAX_SKIPPED_STEPS:
        run.skipped_steps += 1
        run.step += 1
        emit.message(f"{seen}. It is skipped: its examples are not trained.", "warn", step=number, lines=result.lines)
    else:
        return False
    return True
