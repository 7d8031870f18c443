from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.jobs import events
from app.db.tables import Job, Project
from app.storage import LocalStorage
from tests.api_objects import param_of
from tests.factories import append_step_event, make_file, make_job

STEPS = 60


@pytest.fixture
def running(sessions: Sessions, running: Job) -> Job:
    """Of sixty steps, the last two of which were run again."""
    with transaction(sessions) as session:
        job = session.get_one(Job, running.id)
        for step in [*range(1, STEPS + 1), STEPS - 1, STEPS]:
            append_step_event(session, job, step, STEPS, loss=5.0 if step == 40 else 1.0)
        return job


class TestMetrics:
    def test_metrics_have_a_row_per_step(self, client: TestClient, running: Job) -> None:
        body = client.get(f"/v1/fine_tuning/jobs/{running.id}/metrics").json()
        assert (body["object"], body["fine_tuning_job_id"], body["total"]) == (
            "fine_tuning.job.metrics", running.id, STEPS,
        )  # fmt: skip
        assert [row["step"] for row in body["data"]] == list(range(1, STEPS + 1))
        assert body["data"][39]["train_loss"] == 5.0

    def test_max_points_selects_steps(self, client: TestClient, running: Job) -> None:
        body = client.get(f"/v1/fine_tuning/jobs/{running.id}/metrics", params={"max_points": 8}).json()
        steps = [row["step"] for row in body["data"]]
        assert (len(steps), steps[0], steps[-1], body["total"]) == (8, 1, STEPS, STEPS)
        assert 40 in steps  # the spike

    def test_csv_has_the_columns_of_the_results_file(self, client: TestClient, running: Job) -> None:
        answer = client.get(f"/v1/fine_tuning/jobs/{running.id}/metrics", params={"format": "csv", "max_points": 5})
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        lines = answer.text.splitlines()
        assert lines[0].startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
        assert len(lines) == 6


class TestLossCurves:
    PATH = "/v1/fine_tuning/loss_curves"

    def test_a_curve_has_both_ends_and_the_latest_run(
        self, client: TestClient, running: Job, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            waiting = make_job(session, project, make_file(session, storage, project)).id
        answer = client.get(self.PATH, params={"jobs": f"{waiting},{running.id}", "max_points": 20})
        none, curve = answer.json()["data"]
        assert (none["fine_tuning_job_id"], none["steps"], none["train_losses"]) == (waiting, [], [])
        assert (curve["fine_tuning_job_id"], curve["best_valid_loss"]) == (running.id, None)
        assert curve["steps"] == sorted(set(curve["steps"]))
        assert (curve["steps"][0], curve["steps"][-1]) == (1, STEPS)
        assert 15 <= len(curve["steps"]) == len(curve["train_losses"]) <= 20

    def test_unknown_jobs_are_named(self, client: TestClient, running: Job) -> None:
        answer = client.get(self.PATH, params={"jobs": f"ftjob-a,{running.id},ftjob-b"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "jobs")
        assert "ftjob-a, ftjob-b" in answer.json()["error"]["message"]

    @pytest.mark.parametrize("ids", ["", ",", ",".join(f"ftjob-{n}" for n in range(101))])
    def test_curves_are_of_one_to_a_hundred_jobs(self, client: TestClient, running: Job, ids: str) -> None:
        assert param_of(client.get(self.PATH, params={"jobs": ids})) == "jobs"


class TestLogs:
    def test_a_log_is_empty_before_its_first_line(self, client: TestClient, running: Job) -> None:
        answer = client.get(f"/v1/fine_tuning/jobs/{running.id}/logs")
        assert (answer.status_code, answer.text) == (200, "")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"

    def test_logs_of_three_attempts_are_kept(self, client: TestClient, running: Job, sessions: Sessions) -> None:
        path = f"/v1/fine_tuning/jobs/{running.id}/logs"
        with transaction(sessions) as session:
            for attempt in range(2, 7):
                events.put_log(session, running.id, running.project_id, attempt, f"a\nb\nof {attempt}\n", 7)
        newest = client.get(path)
        assert newest.text == "a\nb\nof 6\n"
        assert (newest.headers["x-attempt"], newest.headers["x-cut-bytes"]) == ("6", "7")
        assert client.get(path, headers={"If-None-Match": newest.headers["etag"]}).status_code == 304
        assert client.get(path, params={"attempt": 4, "lines": 1}).text == "of 4\n"
        gone = client.get(path, params={"attempt": 3})
        assert (gone.status_code, gone.json()["error"]["param"]) == (404, "attempt")
        assert all(number in gone.json()["error"]["message"] for number in "456")
