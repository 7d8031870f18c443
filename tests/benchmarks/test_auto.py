"""What becomes of a rate that blows up, and of an "auto" that is worse than the grid, on the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.domain.jobs.resolve import resolve
from app.domain.jobs.spec import JobSpec
from benchmarks import auto
from tests.tiny import make_tiny_base

pytestmark = pytest.mark.extended("a benchmark on the tiny model")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("auto-base"))


def table(tiny: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    small = ["--rows", "4", "--held-out", "10", "--epochs", "1"]
    code = auto.main(["--model", str(tiny), "--threads", "1", "--device", "cpu", *small, *arguments])
    return code, capsys.readouterr().out


def without_bound_of_rate(body: dict[str, Any], *rest: Any) -> JobSpec:
    """Requests with a rate at which training diverges are refused."""
    rate = body["hyperparameters"].pop("learning_rate")
    spec = resolve(body, *rest)
    if rate is None:
        return spec
    return spec.model_copy(update={"hyperparameters": spec.hyperparameters.model_copy(update={"learning_rate": rate})})


def test_a_diverging_rate_is_reported_and_omitted(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "resolve", without_bound_of_rate)
    _, text = table(tiny, capsys, "--tasks", "style", "--seeds", "1", "--rates", "1e30", "1e-3")
    assert "(1e+30)  failed" in text
    assert "0.001, loss" in text


def test_auto_below_the_grid_is_reported_and_sets_the_exit_code(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.domain.jobs.resolve.auto_learning_rate", lambda *_: 1e-9)
    code, text = table(tiny, capsys, "--tasks", "style", "--seeds", "1", "--rates", "1e-2")
    assert "BELOW" in text
    assert code == 1
