"""One run: what it was given, and everything of it that changes while it trains."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from app.domain.spec import RunSpec
from worker.trainer.batch import Corpus, Share
from worker.trainer.lora import Adapter
from worker.trainer.plan import Plan
from worker.trainer.tally import Tally

RATE_WINDOW_STEPS = 20  # the steps whose mean duration the ETA is made of


@dataclass
class Run:
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
    metrics: dict[str, float | None] = field(default_factory=dict)  # of the last step: what a checkpoint carries
    checkpoint: Path | None = None  # the newest one of this attempt
    checkpoint_step: int = -1
    snapshot_step: int = -1
    snapshot_at: float = field(default_factory=time.monotonic)
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RATE_WINDOW_STEPS))

    @property
    def id(self) -> str:
        return self.spec.run_id

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return self.adapter.parameters()

    @property
    def is_complete(self) -> bool:
        return self.step >= self.plan.total_steps

    @property
    def eta_seconds(self) -> float:
        mean = sum(self.recent_seconds) / max(1, len(self.recent_seconds))
        return mean * (self.plan.total_steps - self.step)

    def share(self) -> Share:
        """What this run puts into the next step."""
        examples = self.plan.examples_of(self.step)
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
        if self.is_finite:
            self.run.trained_tokens += self.tokens
