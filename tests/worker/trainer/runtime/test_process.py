"""The working time of a trainer: the waiting time of a warm trainer does not belong to the job."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pytest

from app.domain.jobs.events import Begin, Measured
from tests.worker.trainer.helpers import make_spec, run_trainer
from worker.trainer.__main__ import wait_for_work
from worker.trainer.runtime import process


def test_the_working_time_of_a_warm_trainer_starts_with_its_work(
    tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test process counts as the warm trainer: it has run at least since torch was imported."""
    monkeypatch.setattr(process, "_work_started_at", None)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    process_seconds = process.working_seconds()
    wait_for_work(io.BytesIO(Begin(work_directory=tmp_path).model_dump_json().encode() + b"\n"))
    assert process.working_seconds() < process_seconds
    _, log = run_trainer(make_spec(tiny, examples), tmp_path)
    (measured,) = log.of(Measured)
    assert measured.seconds <= process.working_seconds()
    assert measured.seconds >= measured.step_seconds


def test_the_seconds_of_validations_and_steps_are_measured_separately(
    tiny: Path, examples: Path, tmp_path: Path
) -> None:
    _, without = run_trainer(make_spec(tiny, examples), tmp_path / "without")
    _, validated = run_trainer(make_spec(tiny, examples, validation_file=examples), tmp_path / "with")
    assert [measured.validation_seconds for measured in without.of(Measured)] == [0.0]
    (measured,) = validated.of(Measured)
    assert 0 < measured.validation_seconds < measured.seconds - measured.step_seconds
