"""A planted defect in each kernel: it is refused before a job trains, or transformers' own function stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.spec import QuantizationSpec
from app.domain.jobs.states import Reason
from tests.trainer.helpers import CPU_KERNELS
from tests.trainer.kernels.fused_on_cpu import FUSED_ON_CPU, compile_by
from tests.trainer.model.bases import make_base
from worker.trainer.kernels import modules
from worker.trainer.kernels.cpu import block_attention, quantize
from worker.trainer.model import experts, frozen_linear
from worker.trainer.model.attention import attention
from worker.trainer.model.attention.explicit_attention import ScoreOptions
from worker.trainer.model.base_check import check_base
from worker.trainer.model.base_model import FrozenBase, load_base
from worker.trainer.objective import losses
from worker.trainer.runtime.failures import Failure

NF4, INT8 = QuantizationSpec(), QuantizationSpec(bits=8)
Change = Callable[[Any], Any]  # of what a function returns


def scaled(part: int | None = None, factor: float = 1.1) -> Change:
    """The result, or one part of it, times `factor`."""

    def change(result: Any) -> Any:
        if part is None:
            return result * factor
        return tuple(
            value * factor if index == part and value is not None else value for index, value in enumerate(result)
        )

    return change


def change(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, of_result: Change) -> None:
    original = getattr(owner, name)
    changed = lambda *given, **options: of_result(original(*given, **options))  # noqa: E731
    monkeypatch.setattr(owner, name, staticmethod(changed) if isinstance(owner, type) else changed)


def steeper(of_values: torch.Tensor) -> torch.Tensor:
    """The same values, with 1.1 times the gradient."""
    return of_values + 0.1 * (of_values - of_values.detach())


def miscompile(monkeypatch: pytest.MonkeyPatch, name: str, of_result: Change) -> None:
    """Give the compiled functions whose name ends with `name` a defect."""
    compile: Any = torch.compile

    def compile_wrongly(function: Any, **options: Any) -> Any:
        wrong = lambda *given: of_result(function(*given))  # noqa: E731
        return compile(wrong if function.__name__.endswith(name) else function, **options)

    monkeypatch.setattr(torch, "compile", compile_wrongly)


# what has the defect, the defect, and the end of the name of what stays
REPLACED: dict[str, tuple[Any, str, Change, str]] = {
    "norm": (modules._RMSNorm, "forward", scaled(), "norm"),
    "norm, gradient": (modules._RMSNorm, "backward", scaled(0), "norm"),
    "norm, gradient of the weight": (modules._RMSNorm, "backward", scaled(1), "norm"),
    "gate": (modules._SwiGLU, "forward", scaled(), "mlp"),
    "gate, gradient": (modules._SwiGLU, "backward", scaled(1), "mlp"),
}
# of what the compiler makes: the function, the defect, and what is not replaced
COMPILED: dict[str, tuple[str, Change, str]] = {
    "norm": ("_norm", scaled(), "norms"),
    "norm, gradient": ("_norm", steeper, "norms"),
    "gate": ("swiglu", scaled(), "gated MLPs"),
    "gate, gradient": ("swiglu", steeper, "gated MLPs"),
    "rope": ("apply_rotary_pos_emb", scaled(0), "rotary embeddings"),
}


@pytest.mark.parametrize(
    ("defect", "backend"),
    [
        *((defect, None) for defect in COMPILED),
        ("norm, gradient", "aot_eager"),  # the compiler of torch, up to the code that it would generate
        *(pytest.param(defect, "inductor", marks=pytest.mark.slow) for defect in COMPILED),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch, where it imports its compiler
def test_our_own_function_stays(tiny: Path, monkeypatch: pytest.MonkeyPatch, defect: str, backend: str | None) -> None:
    compile_by(monkeypatch, backend)
    name, of_result, kind = COMPILED[defect]
    miscompile(monkeypatch, name, of_result)
    base = load_base("tiny", tiny, None, torch.float32, FUSED_ON_CPU)
    base.patches.undo()
    assert {"norms", "gated MLPs", "rotary embeddings"} - base.fused_modules.keys() == {kind}
    assert base.fused_problem == ""


def last_code_lost(ranks: Any) -> Any:
    return ranks.clip(max=14)


def halves_swapped(result: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scales = result
    return (codes << 4) | (codes >> 4), scales


def rows_shifted(result: torch.Tensor) -> torch.Tensor:
    return result.roll(1, dims=0)


def without_sinks(options: ScoreOptions) -> ScoreOptions:
    return replace(options, sinks_H=None)


# kernel -> base, quantization, what has the defect, and the defect
REFUSED: dict[str, tuple[str, QuantizationSpec | None, Any, str, Change]] = {
    "attention": ("tiny", NF4, attention, "_block_kernel", scaled()),
    "attention, gradient": ("tiny", NF4, block_attention._BlockAttention, "backward", scaled(1)),
    "attention with sinks": ("gpt-oss", None, attention, "_explicit", scaled()),
    "attention with sinks, no sinks": ("gpt-oss", None, attention, "ScoreOptions", without_sinks),
    "quantize, a code": ("tiny", NF4, quantize, "_ranks", last_code_lost),
    "quantize, order": ("tiny", NF4, quantize, "_codes_and_scales", halves_swapped),
    "dequantize": ("tiny", NF4, frozen_linear, "dequantize_4bit", scaled()),
    "dequantize, 8 bits": ("tiny", INT8, frozen_linear, "int8_vectorwise_dequant", scaled()),
    "experts": ("Qwen3-MoE", None, experts, "grouped_product", rows_shifted),
    "experts, gradient": ("Qwen3-MoE", None, experts._GroupedLinear, "backward", scaled(0)),
    "loss": ("tiny", None, losses, "_chunk", scaled(0)),
    "loss, gradient": ("tiny", None, losses, "_chunk", scaled(2)),
    "loss, a gradient that is no number": ("tiny", None, losses, "_chunk", scaled(2, math.nan)),
}


@pytest.fixture(scope="module")
def directory(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made = {"tiny": tiny}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_base(name, tmp_path_factory.mktemp("base") / "base")
        return made[name]

    return get


def load(directory: Path, quantization: QuantizationSpec | None) -> FrozenBase:
    return load_base("tiny", directory, quantization, torch.bfloat16, CPU_KERNELS)


@pytest.mark.parametrize("defect", REFUSED)
def test_the_base_is_refused(directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, defect: str) -> None:
    name, quantization, owner, function, of_result = REFUSED[defect]
    change(monkeypatch, owner, function, of_result)
    with pytest.raises(Failure) as caught:
        check_base(load(directory(name), quantization))
    assert caught.value.reason == Reason.MODEL_UNAVAILABLE
    assert "forward fails" not in caught.value.message  # an error of the check itself would have this text


@pytest.mark.parametrize(
    ("name", "quantization"), [("tiny", NF4), ("tiny", INT8), ("Qwen3-MoE", NF4), ("gpt-oss", None)]
)
def test_without_a_defect_it_is_not(
    directory: Callable[[str], Path], name: str, quantization: QuantizationSpec | None
) -> None:
    check_base(load(directory(name), quantization))
