"""The environment variables that the package sets for OpenMP and the allocator before torch is loaded."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

import worker.trainer

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
GROWING = "expandable_segments:True"


@pytest.mark.parametrize(
    ("of_operator", "expected"),
    [
        ({}, ["PASSIVE", "5000", GROWING, None]),
        ({"GOMP_SPINCOUNT": "0"}, ["PASSIVE", "0", GROWING, None]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None, GROWING, None]),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, ["PASSIVE", "5000", "max_split_size_mb:64", None]),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, ["PASSIVE", "5000", None, "max_split_size_mb:64"]),
    ],
)
def test_threads_spin_shortly_and_segments_grow_unless_an_operator_has_set_it(
    monkeypatch: pytest.MonkeyPatch, of_operator: dict[str, str], expected: list[str | None]
) -> None:
    others = {name: value for name, value in os.environ.items() if name not in NAMES}
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", others | of_operator)
        patch.setattr(worker.trainer, "PROCESS_STARTED_AT", worker.trainer.PROCESS_STARTED_AT)
        importlib.reload(worker.trainer)
        assert [os.environ.get(name) for name in NAMES] == expected


def test_both_caches_of_products_are_limited_and_an_operators_value_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name: value for name, value in os.environ.items() if name not in CACHES}
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", others | {CACHES[0]: "7"})
        patch.setattr(worker.trainer, "PROCESS_STARTED_AT", worker.trainer.PROCESS_STARTED_AT)
        importlib.reload(worker.trainer)
        assert [os.environ.get(name) for name in CACHES] == ["7", "128"]


@pytest.mark.extended("another start of the real program")
def test_float32_is_multiplied_exactly_whatever_an_image_has_set() -> None:
    show = (
        "import worker.trainer, torch; from worker.trainer.runtime.device import make_repeatable;"
        "make_repeatable(torch.device('cpu'), 1); backends = torch.backends;"
        "print(backends.cuda.matmul.allow_tf32, backends.cuda.matmul.fp32_precision,"
        "backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision)"
    )
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    shown = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, check=True)
    assert shown.stdout.split() == [b"False", b"ieee", b"ieee", b"ieee"]
