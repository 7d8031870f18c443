"""The records of a job on the command line: attempts, logs and metrics."""

from __future__ import annotations

import csv
import io

from app.db.engine import Sessions, transaction
from app.db.jobs import events
from app.db.tables import Job, Project
from app.storage import LocalStorage
from tests.commands.conftest import Tunery
from tests.factories import make_file, make_job, start_job, validate_job
from tests.sentences import Reviewed


def test_attempts_are_listed_with_their_ends(tunery: Tunery, trained_job: Job) -> None:
    title, *rows = tunery("jobs", "attempts", trained_job.id).out.splitlines()
    assert title.split() == ["ATTEMPT", "TASK", "STARTED", "DURATION", "REASON", "WORKER"]
    assert ["done" in row for row in rows] == [True, True]
    found = tunery("jobs", "attempts", trained_job.id, "--json").json
    assert [(each["attempt"], each["kind"], each["reason"]) for each in found] == [
        (1, "validate", "done"),
        (2, "train", "done"),
    ]


def test_logs_are_printed_as_they_are(tunery: Tunery, sessions: Sessions, trained_job: Job) -> None:
    with transaction(sessions) as session:
        events.put_log(session, trained_job.id, trained_job.project_id, 2, "one\ntwo\n", 0)
    assert tunery("jobs", "logs", trained_job.id).out == "one\ntwo\n"
    assert tunery("jobs", "logs", trained_job.id, "-n", 1).out == "two\n"


def test_a_note_says_why_a_log_is_empty(
    tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project, trained_job: Job, reviewed: Reviewed
) -> None:
    with transaction(sessions) as session:
        make_job(session, project, make_file(session, storage, project))
        validate_job(session)
        running = start_job(session)
        waiting = make_job(session, project, make_file(session, storage, project))
    assert "running" in tunery("jobs", "attempts", running.id).out.splitlines()[-1]
    for job in (trained_job, running, waiting, waiting):
        done = tunery("jobs", "logs", job.id)
        assert (done.exit_code, done.out) == (0, "")
        reviewed(done.err)
        if job is waiting:
            tunery("jobs", "cancel", job.id)


def test_metrics_are_a_table_json_or_csv(tunery: Tunery, trained_job: Job) -> None:
    found = tunery("jobs", "metrics", trained_job.id, "--json").json
    table = tunery("jobs", "metrics", trained_job.id).out.splitlines()
    assert len(table) == 1 + found["total"]
    rows = list(csv.DictReader(io.StringIO(tunery("jobs", "metrics", trained_job.id, "--csv").out)))
    assert [int(row["step"]) for row in rows] == [row["step"] for row in found["data"]]
    assert len(tunery("jobs", "metrics", trained_job.id, "--max-points", 2, "--json").json["data"]) == 2
