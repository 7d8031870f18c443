"""A rank of a data-parallel training in which one process runs out of memory once, or loses its GPU.

`torchrun ... --module tests.trainer.distributed.planted_rank WORKDIR`; the variable PLANTED says where in the
second process: "rows" in its third packed batch, "full" in all of its AdamW steps; "gpu" is a lost GPU in its third
packed batch.
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
    """Replaces a function: its third call raises."""

    def __init__(self, function: Any, text: str) -> None:
        self.function = function
        self.text = text
        self.calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError(self.text)
        return self.function(*arguments, **options)


def plant(where: str) -> None:
    if where == "full":
        torch.optim.AdamW.step = always_full  # type: ignore[method-assign,assignment]
    else:
        text = SENTENCE if where == "rows" else "CUDA error: unknown error"
        objective.hidden_states = FailsOnce(objective.hidden_states, text)


def always_full(*_: Any) -> None:
    raise RuntimeError(SENTENCE)


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        plant(os.environ["PLANTED"])
    sys.exit(main(sys.argv[1:]))
