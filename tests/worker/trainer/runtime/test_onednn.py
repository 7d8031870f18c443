from __future__ import annotations

import os

import pytest

from worker.trainer.runtime.onednn import CAPACITY, CAPACITY_OF_TORCH, limit_primitive_cache


@pytest.mark.parametrize("name", [CAPACITY, CAPACITY_OF_TORCH])
def test_both_caches_are_limited(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "environ", {})
    limit_primitive_cache()
    assert os.environ[name] == "128"


def test_what_an_operator_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {CAPACITY: "7"})
    limit_primitive_cache()
    assert os.environ == {CAPACITY: "7", CAPACITY_OF_TORCH: "128"}
