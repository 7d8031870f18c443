"""What TUNERY_CUDA_KERNELS turns on, on a CPU."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from tests.trainer.helpers import CPU_KERNELS
from worker.trainer.kernels import compiled

if TYPE_CHECKING:  # `make gpu-check` also runs where pytest is not installed
    import pytest

FUSED_ON_CPU = replace(CPU_KERNELS, is_fused=True)
TORCH_COMPILE: Any = torch.compile


def compile_by(monkeypatch: pytest.MonkeyPatch, backend: Any = None) -> None:
    """Have torch.compile use this back end; without one it returns a function that calls the plain one, in no time."""
    monkeypatch.setattr(torch, "compile", uncompiled if backend is None else TORCH_COMPILE)
    monkeypatch.setattr(compiled, "BACKEND", backend)
    compiled.compiled_norm.cache_clear()
    torch._dynamo.reset()


def uncompiled(function: Any, **_: Any) -> Any:
    return wraps(function)(lambda *inputs, **options: function(*inputs, **options))
