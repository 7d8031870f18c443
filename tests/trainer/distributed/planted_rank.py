"""A rank of a data-parallel training in which one process runs out of memory once, or loses its GPU.

`torchrun ... --module tests.trainer.distributed.planted_rank WORKDIR`; the variable PLANTED says where in the
second process: "rows" in its third packed batch, "validation" in its first one of a validation, "full" in all of its
AdamW steps; "gpu" is a lost GPU in its third packed batch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from worker.trainer.distributed.torchrun_rank import main
from worker.trainer.objective import objective

SENTENCE = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"


class FailsOnce:
    """Replaces a function: one of the calls that count raises, the third by default."""

    def __init__(self, function: Any, text: str, at: int = 3, counts: Callable[[], bool] = lambda: True) -> None:
        self.function, self.text, self.at, self.counts = function, text, at, counts
        self.calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += self.counts()
        if self.calls == self.at and self.counts():
            raise RuntimeError(self.text)
        return self.function(*arguments, **options)


def plant(where: str) -> None:
    if where == "full":
        torch.optim.AdamW.step = always_full  # type: ignore[method-assign,assignment]
    elif where == "validation":
        short = FailsOnce(objective.hidden_states, SENTENCE, at=1, counts=lambda: not torch.is_grad_enabled())
        objective.hidden_states = short
    else:
        text = SENTENCE if where == "rows" else "CUDA error: unknown error"
        objective.hidden_states = FailsOnce(objective.hidden_states, text)


def always_full(*_: Any) -> None:
    raise RuntimeError(SENTENCE)


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        plant(os.environ["PLANTED"])
    sys.exit(main(sys.argv[1:]))
