from __future__ import annotations

from pathlib import Path

import pytest

from app.db.engine import transaction
from app.db.jobs import events
from app.db.tables.jobs import MAX_LOG_BYTES
from tests.deadline import until
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness
from worker.jobs import trainer_log
from worker.jobs.trainer_log import LogPublisher, read_log_tail


def published(harness: WorkerHarness, job_id: str) -> str | None:
    with transaction(harness.sessions) as session:
        log = events.newest_log(session, job_id)
        return None if log is None else log.text


class TestLogPublisher:
    def test_the_log_is_published_when_the_attempt_has_ended(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        harness.run_next_job(TrainerPlan(steps=1, faults={"*": {"1": "stderr:a word at step one"}}))
        assert "at step one" in (published(harness, job.id) or "")

    def test_the_log_grows_while_the_trainer_runs_and_names_no_directory(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(trainer_log, "PUBLISH_SECONDS", 0.05)
        job = harness.create_queued_job()
        log = tmp_path / "trainer.log"
        with LogPublisher(harness.resources, job, tmp_path):
            log.write_text("first\n")
            until(lambda: published(harness, job.id) == "first\n", "the first line")
            log.write_text(f"first\n{tmp_path}/spec.json\n")
        assert published(harness, job.id) == "first\n<job>/spec.json\n"

    def test_a_long_log_is_published_from_its_end(self, harness: WorkerHarness, tmp_path: Path) -> None:
        job = harness.create_queued_job()
        (tmp_path / "trainer.log.1").write_text("é" * 10 + "\n" + "x" * 99 + "\n" * (MAX_LOG_BYTES // 2))
        (tmp_path / "trainer.log").write_text("ü\n" * (MAX_LOG_BYTES // 4) + "the end\n")
        with LogPublisher(harness.resources, job, tmp_path):
            pass
        text = published(harness, job.id) or ""
        assert text.endswith("ü\nthe end\n")
        assert 0.9 * MAX_LOG_BYTES < len(text.encode()) <= MAX_LOG_BYTES


def test_the_older_half_comes_first(tmp_path: Path) -> None:
    (tmp_path / "trainer.log.1").write_text("one\n")
    (tmp_path / "trainer.log").write_text("two\n")
    assert read_log_tail(tmp_path) == (8, "one\ntwo\n")
    assert read_log_tail(tmp_path / "nothing") == (0, "")
