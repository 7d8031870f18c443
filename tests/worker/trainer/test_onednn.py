from __future__ import annotations

import os

import pytest

from worker.trainer.onednn import CAPACITY, CAPACITY_OF_TORCH, limit_primitive_cache


@pytest.mark.parametrize("name", [CAPACITY, CAPACITY_OF_TORCH])
@pytest.mark.parametrize(("runs", "kept"), [(1, "128"), (2, "256"), (8, "256")])
def test_several_runs_keep_more_products_than_one(
    monkeypatch: pytest.MonkeyPatch, runs: int, kept: str, name: str
) -> None:
    monkeypatch.setattr(os, "environ", {})
    limit_primitive_cache(runs)
    assert os.environ[name] == kept


def test_what_an_operator_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {CAPACITY: "7"})
    limit_primitive_cache(1)
    assert os.environ == {CAPACITY: "7", CAPACITY_OF_TORCH: "128"}
