"""bitsandbytes, imported without torch's compiler.

Its default backend calls `torch.compile` at import for four functions, of which the trainer calls at most one: that of
the small tensors of the 8-bit optimizer on a CPU. That loads the compiler: 47 MB of memory, and one second of every
start. The first import decides, so every module imports bitsandbytes from here.
"""

from __future__ import annotations

import torch

from worker.trainer.model.patches import Patches

with Patches() as patches:  # `compile` is called as a decorator with and without options
    patches.put_attribute(torch, "compile", lambda function=None, **_: function or (lambda each: each))
    import bitsandbytes

__all__ = ["bitsandbytes"]
