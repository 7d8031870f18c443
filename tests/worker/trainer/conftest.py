from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import make_tiny_base, make_tiny_dataset, make_tiny_pairs

torch.set_num_threads(1)  # matrices of the tiny model are small: a second thread makes them slower


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
