"""The metrics of a job for experiment trackers: what is sent, and that no tracker delays or fails the training."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.db.tables import Job
from app.settings import Settings
from tests.deadline import DEADLINE_SECONDS, until
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness
from worker.tracking import feeds
from worker.tracking.feeds import MetricFeed, MetricFeeds
from worker.tracking.runs import RunRequest

WANDB: dict[str, Any] = {"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}
MLFLOW: dict[str, Any] = {"type": "mlflow", "mlflow": {"experiment": "e"}}
COPY = "import sys; open(PATH, 'a').writelines(sys.stdin)"
HANG = "import time; time.sleep(600)"
FAIL = "import sys, os; os.write(1, b'CommError: http://secret-host refused'); sys.exit(1)"


def program(text: str, path: Path = Path()) -> tuple[str, ...]:
    return (sys.executable, "-c", text.replace("PATH", repr(str(path))))


def request(**values: Any) -> RunRequest:
    return RunRequest.model_validate({"job_id": "ftjob-1", "integration": WANDB, "parameters": {"r": 8}} | values)


@pytest.fixture
def with_command(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the harness's worker have a key, and clients that are the given program."""
    harness.resources.settings.wandb_api_key = SecretStr("wandb-key")

    def use(command: tuple[str, ...]) -> None:
        monkeypatch.setattr(feeds, "find_spec", lambda name: object())
        monkeypatch.setattr(
            "worker.jobs.supervisor.MetricFeeds", lambda settings, job: MetricFeeds(settings, job, command)
        )

    return use


def run(harness: WorkerHarness, plan: TrainerPlan, job: Job | None = None) -> Job:
    job = job or harness.create_queued_job(integrations=[WANDB])
    assert harness.run_next_job(plan)
    return harness.job(job)


def warnings(harness: WorkerHarness, job: Job) -> list[dict[str, Any]]:
    return [event.data for event in harness.events(job) if "integration" in event.data]


def has_ended(path: Path, runs: int = 1) -> bool:
    return path.exists() and path.read_text().count("has_failed") == runs


def test_each_step_is_sent_and_a_second_attempt_continues_the_run_of_the_job(
    harness: WorkerHarness, with_command: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "sent"
    with_command(program(COPY, path))
    plan = TrainerPlan(steps=4, validation=True, snapshot_every=1, faults={"2": {"3": "signal:SIGKILL"}})
    job = run(harness, plan)
    until(lambda: has_ended(path, 1), "the end of the first run")
    assert run(harness, plan, job).state == "succeeded"
    until(lambda: has_ended(path, 2), "the end of the second run")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    opened = [line for line in lines if isinstance(line, dict) and "job_id" in line]
    assert [(line["job_id"], line["wandb_api_key"], line["mlflow_tracking_uri"]) for line in opened] == [
        (job.id, "wandb-key", None)
    ] * 2
    assert (opened[0]["parameters"]["model"], opened[0]["parameters"]["lora.r"]) == ("tiny", job.spec["lora"]["r"])
    steps = [line for line in lines if isinstance(line, list)]
    assert [step for step, _ in steps] == [1, 2, 3, 4]
    assert (steps[0][1]["train_loss"], steps[0][1]["valid_loss"], "step" in steps[0][1]) == (1.0, 2.0, False)
    assert [line["has_failed"] for line in lines if isinstance(line, dict) and "has_failed" in line] == [False, False]
    assert warnings(harness, job) == []
    assert b"wandb-key" not in repr(job.spec).encode()


def test_a_client_that_fails_gives_a_warning_without_its_hosts_and_the_job_succeeds(
    harness: WorkerHarness, with_command: Callable[..., None], tmp_path: Path
) -> None:
    with_command(program(FAIL))
    start = tmp_path / "start"
    job = harness.create_queued_job(integrations=[WANDB])
    thread = harness.start_next_job(TrainerPlan(steps=40, step_seconds=0.1, wait_for=str(start)))
    start.touch()
    until(lambda: warnings(harness, job), "the warning")
    thread.join(DEADLINE_SECONDS)
    assert harness.job(job).state == "succeeded"
    (event,) = [event for event in harness.events(job) if event.level == "warn"]
    assert event.data == {"integration": "wandb"}
    assert "CommError" in event.message
    assert "secret-host" not in event.message


def test_a_client_that_hangs_delays_nothing_and_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(feeds, "MAX_WAITING_LINES", 100)
    feed = MetricFeed(request(), program(HANG))
    begin = time.monotonic()
    for step in range(20_000):  # more than pipe and queue hold
        feed.send([step, {"train_loss": 1.0}])
    feed.close(has_failed=False)
    assert time.monotonic() - begin < 5
    assert feed.dropped_lines > 10_000
    assert feed.join(DEADLINE_SECONDS)
    assert "-9" in (feed.take_problem() or "")


@pytest.mark.parametrize(
    ("integration", "has_client", "missing"),
    [(WANDB, False, "extra `wandb`"), (WANDB, True, "TUNERY_WANDB_API_KEY"), (MLFLOW, True, "TUNERY_MLFLOW")],
)
def test_a_worker_without_client_or_key_warns_and_trains_on(
    harness: WorkerHarness,
    monkeypatch: pytest.MonkeyPatch,
    integration: dict[str, Any],
    has_client: bool,
    missing: str,
) -> None:
    monkeypatch.setattr(feeds, "find_spec", lambda name: object() if has_client else None)
    job = harness.create_queued_job(integrations=[integration])
    assert run(harness, TrainerPlan(steps=1), job).state == "succeeded"
    assert warnings(harness, job) == [{"integration": integration["type"]}]
    assert any(missing in message for message in harness.messages(job))


def test_a_client_gets_no_variable_of_the_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://10.0.0.9")
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:password@host/tunery")
    path = tmp_path / "environment"
    feed = MetricFeed(request(), program("import os; open(PATH, 'w').write(repr(dict(os.environ)))", path))
    feed.close(has_failed=False)
    assert feed.join(DEADLINE_SECONDS)
    text = path.read_text()
    assert ("10.0.0.9" in text, "postgresql" in text, "TUNERY_" in text) == (True, False, False)


@pytest.mark.extended("starts the real clients, 10 s")
class TestRealClients:
    def feed(self, integration: dict[str, Any], tmp_path: Path) -> None:
        """Two attempts of one job; the second repeats a step."""
        assert find_spec(integration["type"]), "pip install --group dev"
        for first in (0, 2):
            feed = MetricFeed(
                request(
                    integration=integration,
                    wandb_offline_directory=tmp_path / "wandb",
                    mlflow_tracking_uri=f"file://{tmp_path}/mlflow",
                )
            )
            for step in range(first, first + 3):
                feed.send([step, {"train_loss": step + 0.5}])
            feed.close(has_failed=False)
            assert feed.join(feeds.CLOSE_SECONDS)
            assert feed.take_problem() is None

    def test_wandb_keeps_the_runs_of_both_attempts_offline_under_the_id_of_the_job(self, tmp_path: Path) -> None:
        self.feed(WANDB, tmp_path)
        runs = list((tmp_path / "wandb" / "wandb").glob("offline-run-*-ftjob-1/run-ftjob-1.wandb"))
        assert len(runs) == 2
        assert all(b"train_loss" in path.read_bytes() for path in runs)

    def test_mlflow_has_one_run_with_the_steps_of_both_attempts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        self.feed(MLFLOW, tmp_path)
        (metric,) = (tmp_path / "mlflow").glob("*/*/metrics/train_loss")
        points = {int(line.split()[2]): float(line.split()[1]) for line in metric.read_text().splitlines()}
        assert points == {step: step + 0.5 for step in range(5)}


def test_the_settings_take_the_clients_own_names(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://10.0.0.7:5000")
    loaded = Settings(database_url=settings.database_url, redis_url=settings.redis_url)
    assert loaded.wandb_api_key is not None
    assert loaded.mlflow_tracking_uri is not None
    assert loaded.wandb_api_key.get_secret_value() == "k"
