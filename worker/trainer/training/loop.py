"""The training loop: between two steps stop, finish or save; then one optimizer step; repeat.

The objective (objective.py) runs forward and backward of one packed batch. A step trains a fixed set of examples,
packed into one batch or several; the number of batches changes its memory, and its result only by rounding.
"""

from __future__ import annotations

import time
from functools import partial

from worker.trainer.distributed import parallel
from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy
from worker.trainer.objective.objective import Objective
from worker.trainer.objective.optimizer import (
    clip_gradients,
    divide_gradients,
    learning_rate,
    set_learning_rate,
)
from worker.trainer.objective.overflow import recover
from worker.trainer.runtime.records import Keepalive
from worker.trainer.training.state import Run, StepResult
from worker.trainer.training.step_actions import StepActions


def train(run: Run, objective: Objective, policy: OutOfMemoryPolicy, actions: StepActions) -> None:
    """Train until the run has ended."""
    before_batch = policy.before_batch(actions.emit.keepalive)
    while _between_steps(run, policy, actions):
        result = policy.retry_step(
            run, lambda row_tokens: optimizer_step(run, objective, row_tokens, before_batch, policy.plan.loss_scale)
        )
        if recover(result, policy, objective.base.compute_dtype, actions.emit):
            continue
        if run.schedule.is_validation_due(run.step):
            parallel.lead(partial(actions.after_step, result), actions.shared.take_part)
        elif parallel.is_first():
            actions.after_step(result)


def _between_steps(run: Run, policy: OutOfMemoryPolicy, actions: StepActions) -> bool:
    """Stop, finish or save a snapshot if that is due: a run does so only here. Return whether the run continues.

    The first process decides for all.
    """
    policy.agree()
    run.random_states = parallel.gather_random_states(run.adapter)
    actions.emit.ending = parallel.lead(actions.between_steps, actions.shared.take_part)
    return actions.emit.ending is None


def optimizer_step(
    run: Run, objective: Objective, row_tokens: int, before_batch: Keepalive, loss_scale: float = 1.0
) -> StepResult:
    """Make one optimizer step, in packed batches of at most `row_tokens` tokens.

    If the loss or the gradient is not finite, the run stays unchanged.
    """
    started, hyperparameters = time.monotonic(), run.spec.hyperparameters
    result = StepResult(run, objective)

    objective.begin_step(run.dataset, run.schedule.examples_of(run.step), row_tokens, before_batch)
    with parallel.out_of_memory_in_all():
        for batch in run.batches(row_tokens):
            before_batch("training the next step")
            batch = batch.to(objective.base.device)
            result.add(objective.forward_backward(batch, loss_scale))  # sums, which can be added over batches
        sums = parallel.flatten_sums(run.parameters, result)  # empty with one process
    run.gradients_are_all_reduced = bool(sums)
    parallel.all_reduce_sums(sums, result)  # over the processes that share the step's examples; usually one
    # The only division: sum -> mean, of tokens or examples.
    divide_gradients(run.parameters, result.denominator * loss_scale)
    result.grad_norm = clip_gradients(run.parameters, hyperparameters.max_grad_norm)
    if result.is_finite:
        result.learning_rate = learning_rate(hyperparameters, run.step, run.schedule.total_steps)
        set_learning_rate(run.optimizer, result.learning_rate)
        run.optimizer.step()  # its moments are there (`allocate_moments`)
        run.step += 1
        run.skipped_steps = 0
    run.clear_gradients()

    result.finish(time.monotonic() - started)
    return result
