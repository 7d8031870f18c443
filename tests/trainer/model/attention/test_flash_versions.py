"""Which flash attention is active after a check, with stand-ins in torch's own registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from torch.nn.attention import _registry as registry
from torch.nn.attention import current_flash_attention_impl

from tests.trainer.model.attention.test_attention_check import a_call, with_doubled_scale
from worker.trainer.model.attention import attention
from worker.trainer.model.base_check import check_newest_attention
from worker.trainer.model.patches import Patches


@dataclass
class Active:
    """The handle of an implementation: the kernel that it has changed, until torch removes it."""

    patches: Patches

    def remove(self) -> None:
        self.patches.undo()


def right() -> Active:
    return Active(Patches())


def wrong() -> Active:
    active = right()
    active.patches.put_attribute(attention, "_block_kernel", with_doubled_scale(attention._block_kernel))
    return active


def not_installed() -> Active:
    raise ModuleNotFoundError("No module named 'flash_attn_interface'")


def without_kernels() -> Active:
    raise RuntimeError("the module does not expose kernels")


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    yield
    if current_flash_attention_impl():
        registry.restore_flash_attention_impl()


@pytest.mark.parametrize(
    ("third", "fourth", "active", "problem"),
    [
        (right, right, "FA3", ""),
        (not_installed, right, "FA4", ""),
        (wrong, right, "FA4", "softmax in float32"),
        (without_kernels, wrong, None, "does not expose kernels; FA4: "),
        (not_installed, not_installed, None, ""),
    ],
)
def test_the_first_version_that_is_installed_and_passes_is_active(
    monkeypatch: pytest.MonkeyPatch,
    third: Callable[[], Active],
    fourth: Callable[[], Active],
    active: str | None,
    problem: str,
) -> None:
    monkeypatch.setattr(registry, "_FLASH_ATTENTION_IMPLS", {"FA3": third, "FA4": fourth})
    base = a_base()
    check_newest_attention(base, [a_call()])
    assert current_flash_attention_impl() == active
    assert base.fused_modules == ({f"attention kernels of {active}": 1} if active else {})
    assert problem in base.fused_problem
    assert bool(problem) == bool(base.fused_problem)


@pytest.mark.parametrize("kernels", [{"is_fused": False}, {"kind": "cpu"}])
def test_none_is_tried_without_the_setting_or_a_gpu(monkeypatch: pytest.MonkeyPatch, kernels: dict[str, Any]) -> None:
    monkeypatch.setattr(registry, "_FLASH_ATTENTION_IMPLS", {"FA3": right})
    check_newest_attention(a_base(**kernels), [a_call()])
    assert current_flash_attention_impl() is None


def a_base(**kernels: Any) -> Any:
    chosen = SimpleNamespace(**({"is_fused": True, "kind": "cuda"} | kernels))
    return SimpleNamespace(
        name="tiny", kernels=chosen, quantization=None, fused_modules={}, fused_problem="", margins={}
    )
