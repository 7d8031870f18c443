"""The state of a run: its inputs, and everything that changes while it trains."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from app.domain.jobs.spec import RunSpec
from app.domain.planning.execution_plan import ExecutionPlan
from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.data.batch import BatchesAhead, PackedBatch, TokenizedDataset, pack_batches
from worker.trainer.data.schedule import StepSchedule
from worker.trainer.distributed import parallel
from worker.trainer.objective.metrics import StepMetrics
from worker.trainer.objective.objective import Objective
from worker.trainer.validation.early_stopping import BestValidation

ETA_WINDOW_STEPS = 20  # the ETA follows from the mean duration of these last steps


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that was written and reported."""

    directory: Path
    final: bool


@dataclass
class Run:
    """One training of one adapter: first the fixed fields, then those that change from step to step."""

    spec: RunSpec
    schedule: StepSchedule
    dataset: TokenizedDataset
    validation_dataset: TokenizedDataset | None
    adapter: LoraAdapter
    optimizer: torch.optim.AdamW
    directory: Path  # WORKDIR/runs/<run id>
    provenance: dict[str, Any]  # of the adapter, for the manifests
    step: int = 0  # completed optimizer steps, so also the index of the next one
    trained_tokens: int = 0  # processed tokens, without padding
    first_step: int = 0  # of this attempt
    metrics: dict[str, float | None] = field(default_factory=dict)  # of the last step, for a checkpoint
    best: BestValidation = field(default_factory=BestValidation)
    base_answers: list[str] = field(default_factory=list)  # to the sample prompts; the base never changes
    checkpoints: dict[int, SavedCheckpoint] = field(default_factory=dict)  # of this attempt, by step
    random_states: list[torch.Tensor] = field(default_factory=list)  # dropout generators of all processes, if several
    snapshot_step: int = -1
    snapshot_at: float = field(default_factory=time.monotonic)
    snapshot_plan: ExecutionPlan | None = None  # in the newest snapshot: a resumed attempt would use it
    step_seconds: float = 0.0  # duration of this attempt's steps
    step_tokens: int = 0  # processed in this attempt's steps
    validation_seconds: float = 0.0
    # The gradients are sums over all processes. From then on the step cannot be repeated: the other processes do not
    # repeat it, so its next all-reduce would wait for them without end.
    gradients_are_all_reduced: bool = False
    skipped_steps: int = 0  # the last ones in a row, after an overflow in float16
    ahead: BatchesAhead | None = None  # makes the batches of the next step while a step computes
    recent_step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=ETA_WINDOW_STEPS))

    @property
    def id(self) -> str:
        return self.spec.run_id

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return self.adapter.parameters()

    @property
    def stops_early(self) -> bool:
        return self.best.should_stop(self.spec.hyperparameters.early_stopping)

    @property
    def is_complete(self) -> bool:
        return self.step >= self.schedule.total_steps or self.stops_early

    @property
    def promotes_earlier_step(self) -> bool:
        """Return whether the result is the adapter of the best step, and that is not the current one."""
        return self.spec.hyperparameters.promote_best and self.best.step not in (None, self.step)

    def clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.gradients_are_all_reduced = False

    @contextmanager
    def at_best_step(self) -> Iterator[None]:
        """Within the block, have the step, the weights and the metrics of the best step."""
        current = self.step, self.trained_tokens, self.metrics
        assert self.best.step is not None
        self.step, self.trained_tokens, self.metrics = self.best.step, self.best.trained_tokens, self.best.metrics
        try:
            with self.best.weights_in_place(self.adapter):
                yield
        finally:
            self.step, self.trained_tokens, self.metrics = current

    @property
    def eta_seconds(self) -> float:
        mean = sum(self.recent_step_seconds) / max(1, len(self.recent_step_seconds))
        return mean * (self.schedule.total_steps - self.step)

    def batches(self, row_tokens: int, step: int | None = None) -> Iterator[PackedBatch]:
        """Pack this process's examples of a step, by default of the next one."""
        if step is None and self.ahead is not None:
            return iter(self.ahead.of_step(self.step, row_tokens, self.schedule.total_steps))
        examples = self.schedule.examples_of(self.step if step is None else step)
        documents = self.dataset.documents_of(parallel.own_examples(examples, self.dataset.tokens_of))
        return pack_batches(self.dataset, documents, row_tokens, packing=self.spec.hyperparameters.packing)

    def make_ahead(self, *, pin: bool) -> None:
        """Make each step's batches while the one before computes."""
        self.ahead = BatchesAhead(lambda step, row_tokens: self.batches(row_tokens, step), pin=pin)

    def lines(self) -> list[int]:
        """Return the next step's lines in the training file."""
        return sorted({self.dataset.lines[example] for example in self.schedule.examples_of(self.step)})


class StepResult(StepMetrics):
    """The result of one optimizer step: its lines, its metrics and its duration."""

    def __init__(self, run: Run, objective: Objective) -> None:
        super().__init__(objective.base.device, objective.metric_names)
        self.run = run
        self.lines = run.lines()  # in the training file
        self.grad_norm = math.nan  # before clipping
        self.learning_rate = 0.0
        self.seconds = 0.0

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def finish(self, seconds: float) -> None:
        """Set the duration of the step, and add it and the tokens to the totals of the run."""
        self.seconds = seconds
        self.run.recent_step_seconds.append(seconds)
        self.run.step_seconds += seconds
        self.run.step_tokens += self.tokens
        if self.is_finite:
            self.run.trained_tokens += self.tokens


def result_messages(run: Run) -> Iterator[str]:
    """Yield the messages; none for a run with all its steps whose last adapter is the best."""
    best = run.best
    if run.stops_early and run.step < run.schedule.total_steps:
        yield (
            f"Stopped early after step {run.step} of {run.schedule.total_steps}: the full validation loss did not fall "
            f"in {best.validations_without_fall} validation(s) in a row. The lowest was {best.loss:.4f} after step "
            f"{best.step}."
        )
    if run.promotes_earlier_step:
        yield f"The result is the adapter of step {best.step}, with the lowest full validation loss, {best.loss:.4f}."
    elif best.step not in (None, run.step):
        yield (
            f"The result is the last adapter, of step {run.step}. The full validation loss was lower after step "
            f"{best.step}: {best.loss:.4f}. Set hyperparameters.promote_best to get the adapter with the lowest loss."
        )
