from __future__ import annotations

import os

import pytest

from worker.trainer.onednn import CAPACITY, keep_few


@pytest.mark.parametrize(("runs", "kept"), [(1, "128"), (2, "256"), (8, "256")])
def test_several_runs_keep_more_products_than_one(monkeypatch: pytest.MonkeyPatch, runs: int, kept: str) -> None:
    monkeypatch.setenv(CAPACITY, "0")
    monkeypatch.delenv(CAPACITY)
    keep_few(runs)
    assert os.environ[CAPACITY] == kept


def test_what_an_operator_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAPACITY, "7")
    keep_few(1)
    assert os.environ[CAPACITY] == "7"
