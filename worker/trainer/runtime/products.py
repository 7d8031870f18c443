"""Matrix products in 16 bits, in float32 on a processor without instructions for 16 bits.

There torch's product A B takes 30 to 70 times as long as in float32 (A B^T 5 to 8 times, A^T B 5 times), so the
conversion to float32 is small beside it. Sums are in float32 in both cases, and are rounded once.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812

from worker.trainer.runtime.device import OBVIOUS_RATIO, times_float32

CONVERTED_ROWS = 1024  # of the right matrix at once: 4 MB in float32 for each 1,024 columns


def product(left_M_N: torch.Tensor, right_N_P: torch.Tensor) -> torch.Tensor:
    """Return A B in the dtype of A, which may have a batch dimension too."""
    if not _is_slow(left_M_N):
        return left_M_N @ right_N_P
    sum_M_P = torch.zeros(*left_M_N.shape[:-1], right_N_P.shape[1])
    # Views inside, as autograd refuses later changes in place of a view that a Function returns.
    left, total = left_M_N.flatten(0, -2), sum_M_P.flatten(0, -2)
    parts = torch.split(left, CONVERTED_ROWS, dim=1), torch.split(right_N_P, CONVERTED_ROWS)
    for columns, rows in zip(*parts, strict=True):
        total.addmm_(columns.float(), rows.float())
    return sum_M_P.to(left_M_N.dtype)


def linear(x_T_K: torch.Tensor, weight_D_K: torch.Tensor, bias_D: torch.Tensor | None) -> torch.Tensor:
    """Return x W^T + bias in the dtype of x, which may have a batch dimension too."""
    if not _is_slow(x_T_K):
        return F.linear(x_T_K, weight_D_K, bias_D)
    y_T_D = product(x_T_K, weight_D_K.t())
    return y_T_D if bias_D is None else y_T_D.add_(bias_D)


def _is_slow(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype != torch.float32 and _is_emulated(tensor.dtype)


@lru_cache
def _is_emulated(dtype: torch.dtype) -> bool:
    return times_float32(dtype) > OBVIOUS_RATIO
