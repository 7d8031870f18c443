"""The training loop: between two steps stop, finish or save; then one optimizer step; repeat.

The objective (objective.py) runs forward and backward of one packed batch.
"""

from __future__ import annotations

import time

from worker.trainer.distributed import parallel
from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy
from worker.trainer.objective.objective import Objective
from worker.trainer.objective.optimizer import (
    clip_gradients,
    divide_gradients,
    learning_rate,
    set_learning_rate,
    update_parameters,
)
from worker.trainer.objective.overflow import recover
from worker.trainer.records import Keepalive
from worker.trainer.state import Run, Step
from worker.trainer.step_actions import StepActions


def train(run: Run, objective: Objective, policy: OutOfMemoryPolicy, actions: StepActions) -> None:
    """Train until the run has ended."""
    keepalive = policy.trim_between_batches(actions.emit.keepalive)
    while _between_steps(run, policy, actions):
        step = policy.retry_step(
            run, lambda row_tokens: optimizer_step(run, objective, row_tokens, keepalive, policy.plan.loss_scale)
        )
        if recover(step, policy, objective.base.compute_dtype, actions.emit):
            continue
        if parallel.is_first():
            with actions.emit.fail_run_on_error():
                actions.after_step(step)


def _between_steps(run: Run, policy: OutOfMemoryPolicy, actions: StepActions) -> bool:
    """Stop, finish or save a snapshot if that is due: a run does so only here. Return whether the run continues.

    The first process decides for all.
    """
    policy.agree()
    run.random_states = parallel.gather_random_states(run.adapter)
    if parallel.is_first() and actions.emit.ending is None:
        with actions.emit.fail_run_on_error():
            actions.between_steps(run)
    actions.emit.ending = parallel.broadcast(actions.emit.ending)
    return actions.emit.ending is None


def optimizer_step(
    run: Run, objective: Objective, row_tokens: int, keepalive: Keepalive, loss_scale: float = 1.0
) -> Step:
    """Make one optimizer step. If the loss or the gradient is not finite, the run stays unchanged."""
    started, hyperparameters = time.monotonic(), run.spec.hyperparameters
    step = Step(run, objective.base.device)

    with parallel.out_of_memory_in_all():
        for batch in run.batches(row_tokens):
            keepalive("at the next step")
            batch = batch.to(objective.base.device)
            step.add(objective.forward_backward(batch, loss_scale))  # sums, which can be added over batches
        sums = parallel.sums_of(run.parameters, step)
    run.is_reduced = bool(sums)
    parallel.all_reduce(sums, step)  # over the processes that share the step's examples; usually one
    divide_gradients(
        run.parameters, step.denominator * loss_scale
    )  # the only division: sum -> mean, of tokens or pairs
    step.grad_norm = clip_gradients(run.parameters, hyperparameters.max_grad_norm)
    if step.is_finite:
        step.learning_rate = learning_rate(hyperparameters, run.step, run.schedule.total_steps)
        set_learning_rate(run.optimizer, step.learning_rate)
        update_parameters(run.optimizer, objective.base.device)
        run.step += 1
        run.skipped_steps = 0
    run.clear_gradients()

    step.finish(time.monotonic() - started)
    return step
