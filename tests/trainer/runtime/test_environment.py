"""The environment variables that the package sets for OpenMP and the allocator before torch is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
ALLOCATOR_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def environment_of_a_trainer(names: tuple[str, ...], operator_variables: dict[str, str]) -> list[str | None]:
    show = f"import json, os, worker.trainer; print(json.dumps([os.environ.get(name) for name in {names}]))"
    others = {name: value for name, value in os.environ.items() if name not in names}
    shown = subprocess.run(
        [sys.executable, "-c", show], env=others | operator_variables, capture_output=True, check=True
    )
    values: list[str | None] = json.loads(shown.stdout)
    return values


@pytest.mark.parametrize(
    ("operator_variables", "expected"),
    [
        ({}, ["PASSIVE", "5000"]),
        ({"GOMP_SPINCOUNT": "0"}, ["PASSIVE", "0"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None]),
    ],
)
def test_threads_spin_for_a_short_time_unless_an_operator_has_set_it(
    operator_variables: dict[str, str], expected: list[str | None]
) -> None:
    assert environment_of_a_trainer(NAMES, operator_variables) == expected


@pytest.mark.extended("another start of the real program")
@pytest.mark.parametrize("override", ["0", "1"])
def test_float32_is_multiplied_exactly_whatever_an_image_has_set(override: str) -> None:
    show = (
        "import worker.trainer, torch; from worker.trainer.runtime.device import make_repeatable;"
        "make_repeatable(torch.device('cpu'), 1); backends = torch.backends;"
        "print(backends.cuda.matmul.allow_tf32, backends.cuda.matmul.fp32_precision,"
        "backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision)"
    )
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": override}
    shown = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, check=True)
    assert shown.stdout.split() == [b"False", b"ieee", b"ieee", b"ieee"]


@pytest.mark.parametrize(
    ("operator_variables", "expected"),
    [
        ({}, ["expandable_segments:True", None]),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, ["max_split_size_mb:64", None]),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, [None, "max_split_size_mb:64"]),
    ],
)
def test_segments_of_the_cuda_allocator_grow_unless_an_operator_has_set_it(
    operator_variables: dict[str, str], expected: list[str | None]
) -> None:
    assert environment_of_a_trainer(ALLOCATOR_NAMES, operator_variables) == expected
