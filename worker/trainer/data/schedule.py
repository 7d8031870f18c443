"""How many steps, which examples in each, how many tokens in a forward: arithmetic, decided before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from app.domain.jobs.spec import Hyperparameters
from app.domain.planning.packing import permutation, total_steps


@dataclass(frozen=True)
class StepSchedule:
    """`step` counts optimizer steps that are done, so it is also the index of the next one."""

    examples: int
    batch_size: int
    total_steps: int
    seed: int
    eval_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch_size)

    def examples_of(self, step: int) -> list[int]:
        """The batch of one step: the next `batch_size` of its epoch's permutation; the last one may be short."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = permutation(self.examples, self.seed, epoch)
        return list(order[position * self.batch_size : (position + 1) * self.batch_size])

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step / self.steps_per_epoch

    def is_checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps: at each epoch's end, and at the very end."""
        return step > 0 and (step % self.steps_per_epoch == 0 or step == self.total_steps)

    def is_validation_due(self, step: int) -> bool:
        """Whether a validation is due after `step` steps: every `eval_steps`, else at epochs' ends; at the very end."""
        if self.eval_steps is None or step == self.total_steps:
            return self.is_checkpoint_due(step)
        return step > 0 and step % self.eval_steps == 0


def make_schedule(hyperparameters: Hyperparameters, examples: int, seed: int) -> StepSchedule:
    steps = total_steps(hyperparameters, examples)
    return StepSchedule(examples, hyperparameters.batch_size, steps, seed, hyperparameters.eval_steps)
