"""The records of a job on the command line: attempts, logs and metrics."""

from __future__ import annotations

import csv
import io
import json

import pytest

from app.cli.commands.jobs import progress
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
    assert tunery("jobs", "logs", trained_job.id, "-f").out == "one\ntwo\n"


@pytest.mark.parametrize(
    ("shown", "text", "part"),
    [("", "a\n", "a\n"), ("a\n", "a\nb\n", "b\n"), ("a\nb\n", "b\nc\n", "b\nc\n"), ("a\n", "", ""), ("a\n", "a\n", "")],
    ids=["first", "more", "another attempt", "emptied", "unchanged"],
)
def test_a_followed_log_prints_what_is_new(shown: str, text: str, part: str) -> None:
    assert progress._new_part(shown, text) == part


def test_a_followed_log_goes_on_after_the_server_has_cut_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_OVERLAP_CHARACTERS", 4)
    assert progress._new_part("one\ntwo\n", "two\nthree\n") == "three\n"


def test_followed_events_end_with_the_job(tunery: Tunery, trained_job: Job) -> None:
    """With the newest first, as many as asked for."""
    lines = tunery("jobs", "events", trained_job.id).out.splitlines()[1:]
    followed = tunery("jobs", "events", trained_job.id, "--follow").out.splitlines()
    assert [line.split()[-1] for line in followed] == [line.split()[-1] for line in lines]
    newest = tunery("jobs", "events", trained_job.id, "--follow", "--limit", 2, "--json").out.splitlines()
    assert [json.loads(line)["message"] in lines[-2 + number] for number, line in enumerate(newest)] == [True, True]


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
