"""One run: what it was given, and everything of it that changes while it trains."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.domain.spec import RunSpec
from worker.trainer import parallel
from worker.trainer.batch import Corpus, Share
from worker.trainer.best import Best
from worker.trainer.lora import Adapter
from worker.trainer.plan import Plan
from worker.trainer.tally import Tally

if TYPE_CHECKING:
    from worker.trainer.snapshot import Choices

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
    plan: Plan
    corpus: Corpus
    validation: Corpus | None
    adapter: Adapter
    optimizer: torch.optim.AdamW
    directory: Path  # WORKDIR/runs/<run id>
    facts: dict[str, Any]  # what the manifests say of where this adapter comes from
    step: int = 0  # optimizer steps done, so also the index of the next one
    trained_tokens: int = 0  # real tokens that went through the model
    first_step: int = 0  # of this attempt
    beside: dict[str, int] = field(default_factory=dict)  # the other runs of the next step, and how many they have done
    metrics: dict[str, float | None] = field(default_factory=dict)  # of the last step: what a checkpoint carries
    best: Best = field(default_factory=Best)
    base_answers: list[str] = field(default_factory=list)  # to the sample prompts; the base never changes
    checkpoints: dict[int, Written] = field(default_factory=dict)  # of this attempt, by step
    random_states: list[torch.Tensor] = field(default_factory=list)  # of each process's dropout, where they are several
    snapshot_step: int = -1
    snapshot_at: float = field(default_factory=time.monotonic)
    snapshot_choices: Choices | None = None  # those in the newest one: what a later attempt would go on with
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
        return self.best.says_stop(self.spec.hyperparameters.early_stopping)

    @property
    def is_complete(self) -> bool:
        return self.step >= self.plan.total_steps or self.stops_early

    @property
    def promotes_another(self) -> bool:
        """Whether the result is not the adapter of this step but that of the best one."""
        return self.spec.hyperparameters.promote_best and self.best.step not in (None, self.step)

    def forget_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def let_go(self) -> None:
        """It has ended: what only a further step would need is room for the runs that go on."""
        self.forget_gradients()
        self.optimizer.state.clear()
        self.best.tensors.clear()

    @contextmanager
    def as_at_best(self) -> Iterator[None]:
        """The run as it was at its best step, as far as a checkpoint sees it; afterwards as it is now."""
        now = self.step, self.trained_tokens, self.metrics
        assert self.best.step is not None
        self.step, self.trained_tokens, self.metrics = self.best.step, self.best.trained_tokens, self.best.metrics
        try:
            with self.best.in_place(self.adapter):
                yield
        finally:
            self.step, self.trained_tokens, self.metrics = now

    @property
    def eta_seconds(self) -> float:
        mean = sum(self.recent_seconds) / max(1, len(self.recent_seconds))
        return mean * (self.plan.total_steps - self.step)

    def share(self) -> Share:
        """What this run puts into the next step."""
        return self.share_of(self.step)

    def share_of(self, step: int) -> Share:
        examples = parallel.own_examples(self.plan.examples_of(step), self.corpus.tokens_of)
        documents = [document for example in examples for document in self.corpus.documents(example)]
        knobs = self.spec.hyperparameters
        return Share(self.id, self.corpus, documents, knobs.packing, knobs.beta)

    def lines(self) -> list[int]:
        """The next step's lines in the training file."""
        return sorted({self.corpus.lines[example] for example in self.plan.examples_of(self.step)})


class Step(Tally):
    """What one step of a run was made of, and what came of it."""

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
