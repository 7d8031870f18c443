"""The schedule of a run: the number of steps, the examples of each, and the steps with a checkpoint or a validation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from app.domain.jobs.spec import Hyperparameters
from app.domain.planning.packing import permutation, total_steps


@dataclass(frozen=True)
class StepSchedule:
    """Everything follows from the fields. `step` counts completed optimizer steps, so it is the index of the next."""

    examples: int
    batch_size: int
    total_steps: int
    seed: int
    eval_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch_size)

    def examples_of(self, step: int) -> list[int]:
        """Return the examples of one step: the next `batch_size` of the epoch's permutation, or fewer at its end."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = permutation(self.examples, self.seed, epoch)
        return list(order[position * self.batch_size : (position + 1) * self.batch_size])

    def epoch(self, step: int) -> float:
        """Return the epochs completed after `step` steps."""
        return step / self.steps_per_epoch

    def is_checkpoint_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps: after each epoch and after the last step."""
        return step > 0 and (step % self.steps_per_epoch == 0 or step == self.total_steps)

    def is_validation_due(self, step: int) -> bool:
        """Return whether a validation is due after `step` steps.

        That is every `eval_steps` steps (by default after each epoch), and after the last step.
        """
        if self.eval_steps is None or step == self.total_steps:
            return self.is_checkpoint_due(step)
        return step > 0 and step % self.eval_steps == 0


def make_schedule(hyperparameters: Hyperparameters, examples: int, seed: int) -> StepSchedule:
    steps = total_steps(hyperparameters, examples)
    return StepSchedule(examples, hyperparameters.batch_size, steps, seed, hyperparameters.eval_steps)
