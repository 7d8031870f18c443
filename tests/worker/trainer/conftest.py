from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import make_tiny_base, make_tiny_dataset, make_tiny_pairs
from worker.trainer.checkpoint import provenance

torch.set_num_threads(1)  # matrices of the tiny model are small: a second thread makes them slower


@pytest.fixture(scope="session", autouse=True)
def fast_bfloat16() -> Iterator[None]:
    """Without this, a processor that emulates bfloat16 adds a warning to the messages of each run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "times_float32", lambda _: 1.0)
        yield


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
