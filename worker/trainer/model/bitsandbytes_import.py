"""bitsandbytes, imported without torch's compiler.

Its default backend calls `torch.compile` at import for four functions, of which the trainer calls at most one: that of
the small tensors of the 8-bit optimizer on a CPU. That loads the compiler: 47 MB of memory, and one second of every
start. The first import decides, so every module imports bitsandbytes from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from worker.trainer.model.patches import Patches


def _do_not_compile(function: Callable[..., Any] | None = None, **_options: Any) -> Any:
    """Take the place of `torch.compile`, as a decorator with or without options."""
    return function if function is not None else _do_not_compile


with Patches() as patches:
    patches.put_attribute(torch, "compile", _do_not_compile)
    import bitsandbytes

__all__ = ["bitsandbytes"]
