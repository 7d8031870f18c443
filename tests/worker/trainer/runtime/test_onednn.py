from __future__ import annotations

import os

import pytest

from worker.trainer.runtime.onednn import CAPACITY_VARIABLES, limit_primitive_cache


@pytest.mark.parametrize("name", CAPACITY_VARIABLES)
def test_both_caches_are_limited(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "environ", {})
    limit_primitive_cache()
    assert os.environ[name] == "128"


def test_an_operators_value_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity, torch_capacity = CAPACITY_VARIABLES
    monkeypatch.setattr(os, "environ", {capacity: "7"})
    limit_primitive_cache()
    assert os.environ == {capacity: "7", torch_capacity: "128"}
