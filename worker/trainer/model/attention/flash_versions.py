"""Flash attention 3 and 4 take the place of torch's own, 2, where they are installed and pass the attention check.

torch dispatches its flash attention to them (torch.nn.attention.activate_flash_attention_impl), for the whole process:
FA3 on sm90 (the package `flash_attn_interface`), FA4 on sm90 and sm100 (`flash_attn.cute`). On an H100 FA2 reaches half
of the speed of FA3.
"""

from __future__ import annotations

from collections.abc import Collection

from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)

from worker.trainer.model.attention.attention_check import AttentionCall, check_attention
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.runtime.failures import is_device_lost, is_out_of_memory

VERSIONS = ("FA3", "FA4")


def check_newest_attention(base: FrozenBase, calls: Collection[AttentionCall]) -> None:
    """Check every kernel that these calls may choose, with the newest flash attention that passes.

    A version that is not installed is skipped; the problems of others become a warning. Raises Failure if torch's own
    kernels fail, too.
    """
    for version in VERSIONS if base.kernels.is_fused and base.kernels.kind == "cuda" else ():
        try:
            activate_flash_attention_impl(version)
            margins: dict[str, tuple[float, float]] = {}
            check_attention(base.name, calls, base.quantization, margins)
            base.margins.update(margins)
            base.fused_modules[f"attention kernels of {version}"] = len(calls)
            return
        except Exception as error:
            if current_flash_attention_impl():
                restore_flash_attention_impl()
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            if not isinstance(error, ImportError):
                problem = f"{version}: {' '.join(str(error).split())}"
                base.fused_problem = "; ".join(filter(None, [base.fused_problem, problem]))
    check_attention(base.name, calls, base.quantization, base.margins)
