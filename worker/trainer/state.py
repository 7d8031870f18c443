"""The run: what it was given, and everything that changes while it trains."""

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
from worker.trainer.adapter.lora import Adapter
from worker.trainer.data.batch import PackedBatch, TokenizedDataset, pack_batches
from worker.trainer.data.schedule import StepSchedule
from worker.trainer.distributed import parallel
from worker.trainer.objective.metrics import StepMetrics
from worker.trainer.validation.early_stopping import BestValidation

RATE_WINDOW_STEPS = 20  # the steps whose mean duration the ETA is made of


@dataclass(frozen=True)
class Written:
    """A checkpoint that was written and announced."""

    directory: Path
    final: bool


@dataclass
class Run:
    """One training of one adapter: what is fixed stands first, what changes from step to step behind it."""

    spec: RunSpec
    schedule: StepSchedule
    dataset: TokenizedDataset
    validation_dataset: TokenizedDataset | None
    adapter: Adapter
    optimizer: torch.optim.AdamW
    directory: Path  # WORKDIR/runs/<run id>
    provenance: dict[str, Any]  # where this adapter comes from, for the manifests
    step: int = 0  # optimizer steps done, so also the index of the next one
    trained_tokens: int = 0  # real tokens that went through the model
    first_step: int = 0  # of this attempt
    metrics: dict[str, float | None] = field(default_factory=dict)  # of the last step, for a checkpoint
    best: BestValidation = field(default_factory=BestValidation)
    base_answers: list[str] = field(default_factory=list)  # to the sample prompts; the base never changes
    checkpoints: dict[int, Written] = field(default_factory=dict)  # of this attempt, by step
    random_states: list[torch.Tensor] = field(default_factory=list)  # of each process's dropout, with several processes
    snapshot_step: int = -1
    snapshot_at: float = field(default_factory=time.monotonic)
    snapshot_plan: ExecutionPlan | None = None  # in the newest snapshot: a later attempt would go on with it
    step_seconds: float = 0.0  # of this attempt's steps
    step_tokens: int = 0  # that went through the model in them
    validation_seconds: float = 0.0
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RATE_WINDOW_STEPS))

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
    def promotes_another(self) -> bool:
        """Return whether the result is not the adapter of this step but that of the best one."""
        return self.spec.hyperparameters.promote_best and self.best.step not in (None, self.step)

    def clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def at_best_step(self) -> Iterator[None]:
        """Be what a checkpoint of the best step would have seen; afterwards what it is now."""
        now = self.step, self.trained_tokens, self.metrics
        assert self.best.step is not None
        self.step, self.trained_tokens, self.metrics = self.best.step, self.best.trained_tokens, self.best.metrics
        try:
            with self.best.weights_in_place(self.adapter):
                yield
        finally:
            self.step, self.trained_tokens, self.metrics = now

    @property
    def eta_seconds(self) -> float:
        mean = sum(self.recent_seconds) / max(1, len(self.recent_seconds))
        return mean * (self.schedule.total_steps - self.step)

    def batches(self, row_tokens: int, step: int | None = None) -> Iterator[PackedBatch]:
        """Pack this process's examples of a step; of the next one where none is given."""
        examples = self.schedule.examples_of(self.step if step is None else step)
        documents = self.dataset.documents_of(parallel.own_examples(examples, self.dataset.tokens_of))
        return pack_batches(self.dataset, documents, row_tokens, packing=self.spec.hyperparameters.packing)

    def lines(self) -> list[int]:
        """Return the next step's lines in the training file."""
        return sorted({self.dataset.lines[example] for example in self.schedule.examples_of(self.step)})


class Step(StepMetrics):
    """What one optimizer step was made of, and what came of it."""

    def __init__(self, run: Run, device: torch.device) -> None:
        super().__init__(device)
        self.run = run
        self.lines = run.lines()
        self.grad_norm = math.nan  # before clipping
        self.learning_rate = 0.0
        self.seconds = 0.0

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def close(self, seconds: float) -> None:
        self.seconds = seconds
        self.run.recent_seconds.append(seconds)
        self.run.step_seconds += seconds
        self.run.step_tokens += self.tokens
        if self.is_finite:
            self.run.trained_tokens += self.tokens
