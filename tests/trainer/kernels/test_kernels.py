from __future__ import annotations

import pytest
import torch

from worker.trainer.kernels.kernels import choose_kernels


@pytest.mark.parametrize(
    ("device", "capability", "wanted", "is_fused"),
    [
        ("cpu", None, True, False),
        ("cuda", (7, 5), True, False),
        ("cuda", (8, 0), True, True),
        ("cuda", (12, 0), False, False),
    ],
)
def test_fused_kernels_need_a_gpu_with_bfloat16(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: tuple[int, int] | None, wanted: bool, is_fused: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_kernels(torch.device(device), wants_fused=wanted).is_fused == is_fused
