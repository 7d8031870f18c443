"""A defect in each kernel that the check of a base compares: what `make gpu-check` and the tests plant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from app.domain.jobs.spec import QuantizationSpec
from tests.tiny import make_tiny_base
from tests.trainer.model.bases import make_base
from worker.trainer.kernels.cpu import block_attention, quantize
from worker.trainer.model import experts, frozen_linear
from worker.trainer.model.attention import attention
from worker.trainer.model.attention.explicit_attention import ScoreOptions
from worker.trainer.objective import losses

NF4, INT8 = QuantizationSpec(), QuantizationSpec(bits=8)
Change = Callable[[Any], Any]  # of what a function returns


def scaled(part: int | None = None, factor: float = 1.1) -> Change:
    """The result, or one part of it, times `factor`."""

    def change(result: Any) -> Any:
        if part is None:
            return result * factor
        return tuple(value * factor if index == part else value for index, value in enumerate(result))

    return change


def last_code_lost(ranks: Any) -> Any:
    return ranks.clip(max=14)


def halves_swapped(result: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scales = result
    return (codes << 4) | (codes >> 4), scales


def rows_shifted(result: torch.Tensor) -> torch.Tensor:
    return result.roll(1, dims=0)


def without_sinks(options: ScoreOptions) -> ScoreOptions:
    return replace(options, sinks_H=None)


@dataclass(frozen=True)
class Defect:
    base: str  # "tiny", or one of tests.trainer.model.bases
    quantization: QuantizationSpec | None
    owner: Any
    name: str  # of the owner's function
    change: Change

    def make_base(self, directory: Path) -> Path:
        return make_tiny_base(directory) if self.base == "tiny" else make_base(self.base, directory)

    @contextmanager
    def planted(self) -> Iterator[None]:
        original, stored = getattr(self.owner, self.name), vars(self.owner)[self.name]

        def changed(*given: Any, **options: Any) -> Any:
            return self.change(original(*given, **options))

        setattr(self.owner, self.name, staticmethod(changed) if isinstance(self.owner, type) else changed)
        try:
            yield
        finally:
            setattr(self.owner, self.name, stored)


REFUSED = {
    "attention": Defect("tiny", NF4, attention, "_block_kernel", scaled()),
    "attention, gradient": Defect("tiny", NF4, block_attention._BlockAttention, "backward", scaled(1)),
    "attention with sinks": Defect("gpt-oss", None, attention, "_explicit", scaled()),
    "attention with sinks, no sinks": Defect("gpt-oss", None, attention, "ScoreOptions", without_sinks),
    "quantize, a code": Defect("tiny", NF4, quantize, "_ranks", last_code_lost),
    "quantize, order": Defect("tiny", NF4, quantize, "_codes_and_scales", halves_swapped),
    "dequantize": Defect("tiny", NF4, frozen_linear, "dequantize_4bit", scaled()),
    "dequantize, 8 bits": Defect("tiny", INT8, frozen_linear, "int8_vectorwise_dequant", scaled()),
    "experts": Defect("Qwen3-MoE", None, experts, "grouped_product", rows_shifted),
    "experts, gradient": Defect("Qwen3-MoE", None, experts._GroupedLinear, "backward", scaled(0)),
    "loss": Defect("tiny", None, losses, "_chunk", scaled(0)),
    "loss, gradient": Defect("tiny", None, losses, "_chunk", scaled(2)),
    "loss, a gradient that is no number": Defect("tiny", None, losses, "_chunk", scaled(2, math.nan)),
}
