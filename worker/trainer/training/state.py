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


@dataclass
class Run:
    """One training of one adapter: first the fixed fields, then those that change from step to step."""

    spec: RunSpec
    schedule: StepSchedule
    dataset: TokenizedDataset
    validation_dataset: TokenizedDataset | None
    adapter: LoraAdapter
    optimizer: torch.optim.Optimizer
    directory: Path  # WORKDIR/runs/<run id>
    provenance: dict[str, Any]  # of the adapter, for the manifests
    step: int = 0  # completed optimizer steps, so also the index of the next one
    trained_tokens: int = 0  # processed tokens, without padding
    first_step: int = 0  # of this attempt
    metrics: dict[str, float | None] = field(default_factory=dict)  # of the last step, for a checkpoint
    best: BestValidation = field(default_factory=BestValidation)
    base_answers: list[str] = field(default_factory=list)  # to the sample prompts; the base never changes
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
    recent_step_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=ETA_WINDOW_STEPS))

    def __post_init__(self) -> None:
        kernels = self.adapter.kernels
        pin = kernels.device.type == "cuda"
        self._ahead = BatchesAhead(self.batches_of, pin=pin) if kernels.is_fused else None

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

    def batches(self, row_tokens: int) -> Iterator[PackedBatch]:
        """Pack this process's examples of the next step."""
        if self._ahead is not None:
            return iter(self._ahead.of_step(self.step, row_tokens, self.schedule.total_steps))
        return self.batches_of(self.step, row_tokens)

    def batches_of(self, step: int, row_tokens: int) -> Iterator[PackedBatch]:
        """Pack this process's examples of a step."""
        examples = self.schedule.examples_of(step)
        documents = self.dataset.documents_of(parallel.own_examples(examples, self.dataset.tokens_of))
        return pack_batches(self.dataset, documents, row_tokens, packing=self.spec.hyperparameters.packing)


class StepResult(StepMetrics):
    """The result of one optimizer step: its lines in the training file, its metrics and its duration."""

    def __init__(self, run: Run, objective: Objective) -> None:
        super().__init__(objective.base.device, objective.metric_names)
        self.run = run
        self.lines = sorted({run.dataset.lines[example] for example in run.schedule.examples_of(run.step)})
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
