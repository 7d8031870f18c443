"""bitsandbytes, imported without the compiler that it would load for four functions which are never called here.

Its portable backend passes them through `torch.compile` as it is imported. That sets up all of torch's compiler: 47 MB
that stay, and a second of every start. Whoever imports bitsandbytes first decides, so it is imported through this room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _as_it_is(function: Callable[..., Any] | None = None, **_options: Any) -> Any:
    return function if function is not None else _as_it_is


_compile = torch.compile
torch.compile = _as_it_is  # type: ignore[assignment]
try:
    import bitsandbytes
finally:
    torch.compile = _compile

__all__ = ["bitsandbytes"]
