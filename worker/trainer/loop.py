"""The training loop: every run of a list takes one optimizer step, on shared rows through one frozen base; repeat.

A run leaves the list when it is complete, told to stop, or fails; the others go on. One run is a list of one.

Letters: T tokens of a row, N labelled tokens of a row, D the hidden size.
Supervised runs learn from every labelled token alike; of DPO's pairs each token has a weight (preference.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

from worker.trainer import parallel
from worker.trainer.batch import Row, rows
from worker.trainer.bookkeeping import Bookkeeper
from worker.trainer.emit import Pulse
from worker.trainer.loss import head_loss
from worker.trainer.model import Base, hidden_states
from worker.trainer.oom_in_step import MemoryLayout
from worker.trainer.optim import clip_gradients, divide_gradients, learning_rate, set_learning_rate
from worker.trainer.preference import compare, reference_losses
from worker.trainer.state import Run, Step
from worker.trainer.stop import Stops


def train(base: Base, runs: Sequence[Run], layout: MemoryLayout, stops: Stops, bookkeeper: Bookkeeper) -> None:
    """Train until every run has ended. Between steps the bookkeeper saves, evaluates and reports."""
    while runs := _at_boundary(runs, layout, stops, bookkeeper):
        pulse = layout.tidying(bookkeeper.say.pulse(runs[0].id))
        for step in layout.until_it_fits(runs, partial(optimizer_step, base, runs, pulse=pulse)):
            if parallel.is_first():
                with bookkeeper.say.blaming(step.run.spec):
                    bookkeeper.after_step(step)


def _at_boundary(runs: Sequence[Run], layout: MemoryLayout, stops: Stops, bookkeeper: Bookkeeper) -> Sequence[Run]:
    """Between two steps, the only place where a run is stopped, snapshotted or finished: those that go on."""
    layout.agree()
    parallel.gather_random_states(runs)
    bookkeeper.at_boundary(runs)
    going = [run for run in runs if _goes_on(run, stops, bookkeeper)] if parallel.is_first() else runs
    going = parallel.agree(going, bookkeeper.say.endings)
    for run in runs:
        if bookkeeper.has_ended(run):
            run.let_go()
    return going


def _goes_on(run: Run, stops: Stops, bookkeeper: Bookkeeper) -> bool:
    if bookkeeper.has_ended(run):
        return False
    with bookkeeper.say.blaming(run.spec):
        if command := stops.wanted(run.id):
            bookkeeper.stop(run, command)
        elif run.is_complete:
            bookkeeper.finish(run)
        else:
            bookkeeper.snapshot_if_due(run)
    return not bookkeeper.has_ended(run)


def optimizer_step(base: Base, runs: Sequence[Run], row_tokens: int, pulse: Pulse) -> list[Step]:
    """One optimizer step of each run. A run whose loss or gradient is not finite stays as it was, with a failure."""
    began = time.monotonic()
    steps = {run.id: Step(run, base.device) for run in runs}

    for row in rows([run.share() for run in runs], row_tokens):
        pulse("at the next step")
        forward_backward(base, row.to(base.device), steps)
    for step in steps.values():
        run, knobs = step.run, step.run.spec.hyperparameters
        parallel.all_reduce(step)  # over the processes that share the step's examples; there is mostly one
        divide_gradients(run.parameters, step.denominator)  # the one division: sum -> mean over tokens, or over pairs
        step.grad_norm = clip_gradients(run.parameters, knobs.max_grad_norm)
        if step.is_finite:
            step.learning_rate = learning_rate(knobs, run.step, run.plan.total_steps)
            set_learning_rate(run.optimizer, step.learning_rate)
            run.optimizer.step()
            run.step += 1
        run.forget_gradients()
    for step in steps.values():
        step.close(time.monotonic() - began)
    return list(steps.values())


def forward_backward(base: Base, row: Row, steps: Mapping[str, Step]) -> None:
    """Add the gradients of a row's sums of losses to those of its runs, and what it was made of to their steps."""
    reference_N = reference_losses(base, row)  # of DPO: with the adapters off; None where the row has no pairs
    hidden_T_D = hidden_states(base, row)  # W x + scale * B A x, for each run's tokens with its own A and B
    hidden_N_D = hidden_T_D.index_select(0, row.predictors_N)  # only what is learned from reaches the head
    pairs = compare(base, row, hidden_N_D, reference_N)  # margins, and what each token weighs in their loss
    weights_N = pairs.weights_N if pairs else None
    loss_sum, losses_N, hits_N = head_loss(hidden_N_D, base.head_of(row), row.targets_N, weights_N)
    loss_sum.backward()  # type: ignore[no-untyped-call]  # of a sum: gradients add up over rows, whatever the rows are
    for segment in row.segments:
        steps[segment.run_id].add(segment, losses_N, hits_N, pairs)
