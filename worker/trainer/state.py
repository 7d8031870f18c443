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
from worker.trainer.batch import Corpus, Segment, Share
from worker.trainer.lora import Adapter
from worker.trainer.plan import Plan

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
    step_seconds: float = 0.0  # of this attempt's steps
    step_tokens: int = 0  # that went through the model in them
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
        return self.share_of(self.step)

    def share_of(self, step: int) -> Share:
        examples = self.plan.examples_of(step)
        documents = [document for example in examples for document in self.corpus.documents(example)]
        return Share(self.id, self.corpus, documents, self.spec.hyperparameters.packing)

    def lines(self) -> list[int]:
        """The next step's lines in the training file."""
        return sorted({self.corpus.lines[example] for example in self.plan.examples_of(self.step)})


class Step:
    """What one step of a run was made of, and what came of it. Sums stay on the device until somebody asks."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.run = run
        self.lines = run.lines()
        self.tokens = 0  # real tokens that went through the model
        self.labelled_tokens = 0
        self.grad_norm = math.nan  # before clipping
        self.learning_rate = 0.0
        self.seconds = 0.0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._hits = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, segment: Segment, losses_N: torch.Tensor, hits_N: torch.Tensor) -> None:
        """Take this run's part of a row into account."""
        mine = slice(segment.first, segment.last)
        self._loss_sum += losses_N[mine].sum(dtype=torch.float64)
        self._hits += hits_N[mine].sum()
        self.tokens += segment.end - segment.start
        self.labelled_tokens += segment.last - segment.first

    @property
    def loss(self) -> float:
        """Nats per labelled token."""
        return self._loss_sum.item() / self.labelled_tokens

    @property
    def accuracy(self) -> float:
        """The share of labelled tokens that were the likeliest."""
        return self._hits.item() / self.labelled_tokens

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
