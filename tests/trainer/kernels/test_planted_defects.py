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
from tests.trainer.kernels import fake_liger_kernel
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


LIGER = fake_liger_kernel
# what has the defect, the defect, and the end of the name of what stays
REPLACED: dict[str, tuple[Any, str, Change, str]] = {
    "norm": (modules._RMSNorm, "forward", scaled(), "norm"),
    "norm, gradient": (modules._RMSNorm, "backward", scaled(0), "norm"),
    "norm, gradient of the weight": (modules._RMSNorm, "backward", scaled(1), "norm"),
    "gate": (modules._SwiGLU, "forward", scaled(), "mlp"),
    "gate, gradient": (modules._SwiGLU, "backward", scaled(1), "mlp"),
    "rope": (LIGER, "_rotated", scaled(), "apply_rotary_pos_emb"),
    "rope, gradient": (LIGER.LigerRopeFunction, "backward", scaled(0), "apply_rotary_pos_emb"),
}
# of those of Liger Kernel, which may take the place of ours
FUSED: dict[str, tuple[Any, str, Change, str]] = {
    "norm": (LIGER, "_norm", scaled(), "norms"),
    "norm, gradient": (LIGER.LigerRMSNormFunction, "backward", scaled(0), "norms"),
    "norm, gradient of the weight": (LIGER.LigerRMSNormFunction, "backward", scaled(1), "norms"),
    "gate, gradient": (LIGER.LigerSiLU, "backward", scaled(1), "gated MLPs"),
}


@pytest.mark.parametrize("defect", [None, *REPLACED])
def test_transformers_own_function_stays(tiny: Path, monkeypatch: pytest.MonkeyPatch, defect: str | None) -> None:
    fake_liger_kernel.install(monkeypatch)
    kernels = fake_liger_kernel.FUSED_ON_CPU if defect is None or "rope" in defect else CPU_KERNELS
    if defect is not None:
        owner, name, of_result, _ = REPLACED[defect]
        change(monkeypatch, owner, name, of_result)
    base = load_base("tiny", tiny, None, torch.float32, kernels)
    names = base.patches.names
    base.patches.undo()
    for kind in ("norm", "mlp", *(["apply_rotary_pos_emb"] if kernels.is_fused else [])):
        assert any(name.endswith(kind) for name in names) == (defect is None or REPLACED[defect][3] != kind)


@pytest.mark.parametrize("defect", FUSED)
def test_our_own_function_stays(tiny: Path, monkeypatch: pytest.MonkeyPatch, defect: str) -> None:
    fake_liger_kernel.install(monkeypatch)
    owner, name, of_result, kind = FUSED[defect]
    change(monkeypatch, owner, name, of_result)
    base = load_base("tiny", tiny, None, torch.float32, fake_liger_kernel.FUSED_ON_CPU)
    base.patches.undo()
    assert {"norms", "gated MLPs", "rotary embeddings"} - base.fused_modules.keys() == {kind}


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
