"""What the database itself refuses, whatever the code does: every ordered pair of states, and impossible rows."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db.engine import Sessions, transaction
from app.db.tables import Attempt, Job, Project
from app.domain.jobs.states import CRASHES, TERMINAL, JobState, Reason
from app.storage import LocalStorage
from tests.factories import make_file

ALLOWED = {
    ("validating_files", "queued"), ("validating_files", "failed"), ("validating_files", "cancelled"),
    ("queued", "running"), ("queued", "paused"), ("queued", "failed"), ("queued", "cancelled"),
    ("running", "queued"), ("running", "paused"), ("running", "succeeded"), ("running", "failed"),
    ("running", "cancelled"), ("paused", "queued"), ("paused", "cancelled"),
}  # fmt: skip
PAIRS = [(old, new) for old, new in product(JobState, JobState) if old != new]


def columns_of(state: JobState) -> dict[str, Any]:
    """A row that every CHECK accepts in this state."""
    now = text("clock_timestamp()")
    columns: dict[str, Any] = {
        "state": state, "lease_owner": None, "lease_expires_at": None, "finished_at": None, "adapter_sha256": None,
        "error_code": None,
    }  # fmt: skip
    if state == JobState.RUNNING:
        columns |= {"lease_owner": "me", "lease_expires_at": now}
    if state in TERMINAL:
        columns |= {"finished_at": now}
    if state == JobState.SUCCEEDED:
        columns |= {"adapter_sha256": "0" * 64}
    if state == JobState.FAILED:
        columns |= {"error_code": "server_error"}
    return columns


def put(session: Session, job: Job, state: JobState) -> None:
    """Into any state, past the guard."""
    session.execute(text("ALTER TABLE jobs DISABLE TRIGGER guard_job"))
    session.execute(update(Job).where(Job.id == job.id).values(**columns_of(state)))
    session.execute(text("ALTER TABLE jobs ENABLE TRIGGER guard_job"))


def change(session: Session, job: Job, **columns: Any) -> None:
    session.execute(update(Job).where(Job.id == job.id).values(**columns))


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=[f"{old}-{new}" for old, new in PAIRS])
def test_a_state_follows_another_only_where_the_state_machine_says_so(
    sessions: Sessions, job: Job, old: JobState, new: JobState
) -> None:
    with transaction(sessions) as session:
        put(session, job, old)
    if (old, new) in ALLOWED:
        with transaction(sessions) as session:
            change(session, job, **columns_of(new))
        return
    with pytest.raises(IntegrityError, match=f"{old} cannot become {new}"), transaction(sessions) as session:
        change(session, job, **columns_of(new))
    with transaction(sessions) as session:
        assert session.get_one(Job, job.id).state == old


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_ends_an_attempt_in_a_state_that_may_follow(reason: Reason) -> None:
    assert {("running", reason.final_state), ("validating_files", reason.final_state)} & ALLOWED
    assert reason not in CRASHES or reason.final_state == JobState.QUEUED  # a crash is tried again by itself


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_a_finished_job_accepts_changes_that_keep_its_state(sessions: Sessions, job: Job, state: JobState) -> None:
    with transaction(sessions) as session:
        put(session, job, state)
        finished_at = session.get_one(Job, job.id).finished_at
    with transaction(sessions) as session:
        change(session, job, state=state, user_metadata={"k": "v"})  # the same state is no transition
    with transaction(sessions) as session:
        row = session.get_one(Job, job.id)
        assert (row.state, row.user_metadata) == (state, {"k": "v"})
        assert row.finished_at == finished_at is not None


@pytest.mark.parametrize("column", ["attempt", "event_seq", "train_attempts"])
def test_numbers_that_fence_and_order_never_go_down(sessions: Sessions, job: Job, column: str) -> None:
    with transaction(sessions) as session:
        change(session, job, **{column: 5})
    with pytest.raises(IntegrityError, match="never go down"), transaction(sessions) as session:
        change(session, job, **{column: 4})


@pytest.mark.parametrize("column", ["spec", "project_id", "training_file_id"])
def test_the_request_is_immutable(
    sessions: Sessions, job: Job, storage: LocalStorage, project: Project, column: str
) -> None:
    with transaction(sessions) as session:
        other = make_file(session, storage, project)
        session.add(Project(id="proj_other", name="other"))
    values = {"spec": {"version": 2}, "project_id": "proj_other", "training_file_id": other.id}
    with pytest.raises(IntegrityError, match="never changes"), transaction(sessions) as session:
        change(session, job, **{column: values[column]})


def test_a_success_that_is_not_desired_any_more_is_refused(sessions: Sessions, job: Job) -> None:
    with transaction(sessions) as session:
        put(session, job, JobState.RUNNING)
        change(session, job, desired="pause")
    with pytest.raises(IntegrityError, match="although pause"), transaction(sessions) as session:
        change(session, job, **columns_of(JobState.SUCCEEDED))


@pytest.mark.parametrize(
    ("state", "columns"),
    [
        (JobState.QUEUED, {"state": "unheard_of"}),
        (JobState.QUEUED, {"desired": "unheard_of"}),
        (JobState.QUEUED, {"lease_owner": "me"}),
        (JobState.QUEUED, {"lease_owner": "me", "lease_expires_at": text("clock_timestamp()")}),
        (JobState.RUNNING, {"lease_owner": None, "lease_expires_at": None}),
        (JobState.RUNNING, {"finished_at": text("clock_timestamp()")}),
        (JobState.CANCELLED, {"finished_at": None}),
        (JobState.SUCCEEDED, {"adapter_sha256": None}),
        (JobState.CANCELLED, {"adapter_sha256": "0" * 64}),
        (JobState.FAILED, {"error_code": None}),
        (JobState.CANCELLED, {"error_code": "server_error"}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_impossible_rows_are_refused(sessions: Sessions, job: Job, state: JobState, columns: dict[str, Any]) -> None:
    with transaction(sessions) as session:
        put(session, job, state)
    with pytest.raises(IntegrityError), transaction(sessions) as session:
        change(session, job, **columns)


def test_a_job_has_at_most_one_open_attempt(sessions: Sessions, job: Job, project: Project) -> None:
    both = [Attempt(job_id=job.id, attempt=n, project_id=project.id, kind="train", worker="me") for n in (1, 2)]
    with pytest.raises(IntegrityError, match="uq_attempts_one_open"), transaction(sessions) as session:
        session.add_all(both)
