from __future__ import annotations

import csv
import io

from app.db.engine import Sessions, transaction
from app.db.jobs import events
from app.db.tables import Job, Project
from app.storage import LocalStorage
from tests.app.cli.conftest import Tunery
from tests.factories import make_file, make_job, start_job, validate_job


class TestAttempts:
    def test_are_listed_with_the_reason_for_which_each_ended(
        self, tunery: Tunery, sessions: Sessions, trained_job: Job
    ) -> None:
        title, validation, training = tunery("jobs", "attempts", trained_job.id).out.splitlines()
        assert title.split() == ["ATTEMPT", "TASK", "STARTED", "DURATION", "REASON", "WORKER"]
        assert ("validation of the files" in validation, "training" in training, "done" in training) == (True,) * 3
        found = tunery("jobs", "attempts", trained_job.id, "--json").json
        assert [(each["attempt"], each["kind"], each["reason"]) for each in found] == [
            (1, "validate", "done"),
            (2, "train", "done"),
        ]

    def test_a_running_one_has_no_reason(
        self, tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
    ) -> None:
        with transaction(sessions) as session:
            make_job(session, project, make_file(session, storage, project))
            validate_job(session)
            job = start_job(session)
        *_, training = tunery("jobs", "attempts", job.id).out.splitlines()
        assert "running" in training

    def test_of_an_unknown_job_are_not_found(self, tunery: Tunery) -> None:
        assert tunery("jobs", "attempts", "ftjob-nothere").exit_code == 3


class TestLogs:
    def test_are_printed_as_they_are(self, tunery: Tunery, sessions: Sessions, trained_job: Job) -> None:
        said = tunery("jobs", "logs", trained_job.id).err
        assert "the job is succeeded and the trainer wrote no log" in said
        with transaction(sessions) as session:
            events.put_log(session, trained_job.id, trained_job.project_id, 2, "one\ntwo\n", 0)
        assert tunery("jobs", "logs", trained_job.id).out == "one\ntwo\n"
        assert tunery("jobs", "logs", trained_job.id, "-n", 1).out == "two\n"
        assert tunery("jobs", "logs", trained_job.id, "--attempt", 9).exit_code == 3

    def test_for_a_queued_job_the_note_says_that_no_trainer_has_started(
        self, tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
    ) -> None:
        with transaction(sessions) as session:
            job = make_job(session, project, make_file(session, storage, project))
        assert "No log yet: the job is validating_files and no trainer has started" in logs_of(tunery, job)
        tunery("jobs", "cancel", job.id)
        assert "No log: the job is cancelled and no trainer was started" in logs_of(tunery, job)

    def test_for_a_running_job_the_note_says_that_the_log_is_empty_so_far(
        self, tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
    ) -> None:
        with transaction(sessions) as session:
            make_job(session, project, make_file(session, storage, project))
            validate_job(session)
            job = start_job(session)
        assert "No log yet: the job is running and the trainer has written no log" in logs_of(tunery, job)


def logs_of(tunery: Tunery, job: Job) -> str:
    """What is said beside an empty log."""
    done = tunery("jobs", "logs", job.id)
    assert (done.exit_code, done.out) == (0, "")
    return done.err


class TestMetrics:
    def test_are_a_table_json_or_csv(self, tunery: Tunery, trained_job: Job) -> None:
        found = tunery("jobs", "metrics", trained_job.id, "--json").json
        table = tunery("jobs", "metrics", trained_job.id).out.splitlines()
        assert len(table) == 1 + found["total"]
        rows = list(csv.DictReader(io.StringIO(tunery("jobs", "metrics", trained_job.id, "--csv").out)))
        assert [int(row["step"]) for row in rows] == [row["step"] for row in found["data"]]
        assert len(tunery("jobs", "metrics", trained_job.id, "--max-points", 2, "--json").json["data"]) == 2
