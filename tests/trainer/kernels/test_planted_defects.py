"""A planted defect in each kernel: it is refused before a job trains, or transformers' own function stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.spec import QuantizationSpec
from app.domain.jobs.states import Reason
from tests.trainer.helpers import CPU_KERNELS
from tests.trainer.kernels.fused_on_cpu import FUSED_ON_CPU, compile_by
from tests.trainer.kernels.planted_defects import INT8, NF4, REFUSED, Change, scaled
from tests.trainer.model.bases import make_base
from worker.trainer.kernels import modules
from worker.trainer.model.base_check import check_base
from worker.trainer.model.base_model import FrozenBase, load_base
from worker.trainer.runtime.failures import Failure


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
def test_the_base_is_refused(directory: Callable[[str], Path], defect: str) -> None:
    planted = REFUSED[defect]
    with planted.planted(), pytest.raises(Failure) as caught:
        check_base(load(directory(planted.base), planted.quantization))
    assert caught.value.reason == Reason.MODEL_UNAVAILABLE
    assert "forward fails" not in caught.value.message  # an error of the check itself would have this text


@pytest.mark.parametrize(
    ("name", "quantization"), [("tiny", NF4), ("tiny", INT8), ("Qwen3-MoE", NF4), ("gpt-oss", None)]
)
def test_without_a_defect_it_is_not(
    directory: Callable[[str], Path], name: str, quantization: QuantizationSpec | None
) -> None:
    check_base(load(directory(name), quantization))
