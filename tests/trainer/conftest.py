from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.spec import TrainerSpec
from tests.tiny import make_tiny_base, make_tiny_dataset, make_tiny_labelled, make_tiny_pairs
from tests.trainer.helpers import Trainings
from worker.trainer.checkpoint import provenance
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.runtime import device
from worker.trainer.training import run as program
from worker.trainer.training import shared_work

torch.set_num_threads(1)  # matrices of the tiny model are small: a second thread makes them slower


@pytest.fixture(scope="session", autouse=True)
def fast_bfloat16() -> Iterator[None]:
    """The dtype of a run, and its warnings, do not depend on the processor of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (device, provenance):
            patch.setattr(module, "multiplies_fast", lambda _: True)
        yield


@pytest.fixture(autouse=True)
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process count the activations of a base once, and don't measure what an engine must compute.

    Both change nothing about the training, and take a third of the time of a run with a tiny base. A file about them
    has a fixture of the same name that does nothing.
    """
    monkeypatch.setattr(program, "count_missing", _count_missing)
    monkeypatch.setattr(shared_work, "measure_reference", lambda *_: None)


_counted: dict[object, Mapping[Any, float]] = {}
_count = program.count_missing


def _count_missing(spec: TrainerSpec, base: FrozenBase, run: Any, recomputation: Any) -> Mapping[Any, float]:
    of_base = (spec.base.model_dump_json(), str(base.quantization), base.compute_dtype, base.kernels.is_fused)
    key = (*of_base, spec.run.lora.model_dump_json())
    if key not in _counted:
        _counted[key] = _count(spec, base, run, recomputation)
    return _counted[key]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny base model. Tests that change a base model make their own."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve chat examples of uneven length."""
    return make_tiny_dataset(tmp_path_factory.mktemp("tiny-data") / "train.jsonl", 12)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve preference pairs of uneven length."""
    return make_tiny_pairs(tmp_path_factory.mktemp("tiny-data") / "pairs.jsonl", 12)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve answers of uneven length, each desirable or not."""
    return make_tiny_labelled(tmp_path_factory.mktemp("tiny-data") / "labelled.jsonl", 12)


@pytest.fixture
def train(tiny: Path, examples: Path, tmp_path: Path) -> Trainings:
    return Trainings(tiny, examples, tmp_path)
