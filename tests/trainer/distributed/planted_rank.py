"""A rank of a data-parallel training in which one process runs out of memory once, or loses its GPU.

`torchrun ... --module tests.trainer.distributed.planted_rank WORKDIR`; the variable PLANTED says where in the
second process: "rows" in its third packed batch, "update" in its first AdamW step, "full" in all of its AdamW steps;
"gpu" is a lost GPU in its third packed batch.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from worker.trainer.distributed.torchrun_rank import main
from worker.trainer.objective import objective

SENTENCE = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"


class FailsOnce:
    """Replaces a function: the call with index `failing` raises, by default out of memory; with None all do."""

    def __init__(self, function: Any, failing: int | None, text: str = SENTENCE) -> None:
        self.function = function
        self.failing = failing
        self.text = text
        self.calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.failing in (None, self.calls - 1):
            raise RuntimeError(self.text)
        return self.function(*arguments, **options)


def plant(where: str) -> None:
    if where in ("rows", "gpu"):
        text = SENTENCE if where == "rows" else "CUDA error: unknown error"
        objective.hidden_states = FailsOnce(objective.hidden_states, 2, text)
    else:
        failing = FailsOnce(torch.optim.AdamW.step, 0 if where == "update" else None)
        torch.optim.AdamW.step = lambda *arguments: failing(*arguments)  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        plant(os.environ["PLANTED"])
    sys.exit(main(sys.argv[1:]))
