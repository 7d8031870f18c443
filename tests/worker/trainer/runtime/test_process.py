"""A trainer's clock: a spare one's wait belongs to no job."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pytest

from app.domain.jobs.events import Begin, Measured
from tests.worker.trainer.helpers import make_spec, run_trainer
from worker.trainer.__main__ import wait_for_work
from worker.trainer.runtime import process


def test_the_clock_of_a_spare_begins_when_it_gets_its_work(
    tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process has waited since the tests began, or at least since torch was imported."""
    monkeypatch.setattr(process, "_began_at", None)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    waited = process.working_seconds()
    wait_for_work(io.BytesIO(Begin(work_directory=tmp_path).model_dump_json().encode() + b"\n"))
    assert process.working_seconds() < waited
    _, log = run_trainer(make_spec(tiny, examples), tmp_path)
    (measured,) = log.of(Measured)
    assert measured.seconds <= process.working_seconds()
    assert measured.seconds >= measured.step_seconds


def test_validations_are_told_apart_from_steps(tiny: Path, examples: Path, tmp_path: Path) -> None:
    _, without = run_trainer(make_spec(tiny, examples), tmp_path / "without")
    _, validated = run_trainer(make_spec(tiny, examples, validation_file=examples), tmp_path / "with")
    assert [measured.validation_seconds for measured in without.of(Measured)] == [0.0]
    (measured,) = validated.of(Measured)
    assert 0 < measured.validation_seconds < measured.seconds - measured.step_seconds
