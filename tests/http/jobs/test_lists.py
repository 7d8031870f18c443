"""The filters of the two lists of jobs, alone and together with pages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from httpx2 import Response
from sqlalchemy import select, update
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.fast_reads.job_reads import JobColumn
from app.db.jobs import jobs
from app.db.tables import ApiKey, Attempt, Job, Project
from app.domain.jobs.states import JobState
from app.storage import LocalStorage
from tests.api_objects import error_of
from tests.factories import (
    append_step_event,
    make_failed_job,
    make_file,
    make_job,
    make_project,
    make_succeeded_job,
    start_job,
    validate_job,
)

JOBS = "/v1/fine_tuning/jobs"
ALL_JOBS = "/v1/organization/jobs"
T = 1_790_000_000
pytestmark = pytest.mark.usefixtures("base_model")


def ids(answer: Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["data"]]


def pages(client: TestClient, path: str, **params: Any) -> list[str]:
    """Every id, one job a page."""
    found: list[str] = []
    while True:
        page = client.get(path, params={"limit": 1, **params, **({"after": found[-1]} if found else {})})
        found += ids(page)
        if not page.json()["has_more"]:
            return found


@pytest.fixture
def by_state(sessions: Sessions, storage: LocalStorage, project: Project) -> dict[str, str]:
    """{state: id} of one job in each state."""
    with transaction(sessions) as session:
        made = {
            JobState.SUCCEEDED: make_succeeded_job(session, storage, project),
            JobState.FAILED: make_failed_job(session, storage, project),
        }
        file = make_file(session, storage, project)
        for _ in range(4):
            make_job(session, project, file)
        made[JobState.RUNNING] = validate_job(session)
        start_job(session)
        for state, move in ((JobState.PAUSED, jobs.pause), (JobState.CANCELLED, jobs.cancel)):
            made[state] = validate_job(session)
            move(session, project.id, made[state].id)
        made[JobState.QUEUED] = validate_job(session)
        made[JobState.VALIDATING] = make_job(session, project, file)
        return {state.value: job.id for state, job in made.items()}


@pytest.fixture
def by_time(sessions: Sessions, storage: LocalStorage, project: Project) -> list[str]:
    """Ids of three jobs, created 0, 1 and 2 seconds after T, half a second later each."""
    return made_at(sessions, storage, project, [T + 0.5, T + 1.5, T + 2.5])


def made_at(sessions: Sessions, storage: LocalStorage, project: Project, times: Sequence[float]) -> list[str]:
    with transaction(sessions) as session:
        file = make_file(session, storage, project)
        made = [make_job(session, project, file, metadata={"n": str(n % 2)}) for n, _ in enumerate(times)]
        for job, seconds in zip(made, times, strict=True):
            moment = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
            session.execute(update(Job).where(Job.id == job.id).values(created_at=moment))
        return [job.id for job in made]


@pytest.fixture
def by_result(sessions: Sessions, storage: LocalStorage, project: Project) -> list[str]:
    """Ids of four jobs: three with the names c, a and b, of which the first two trained, and one without a name."""
    with transaction(sessions) as session:
        done = make_succeeded_job(session, storage, project, suffix="c")
        file = make_file(session, storage, project)
        make_job(session, project, file, suffix="a")
        validate_job(session)
        running = start_job(session)
        append_step_event(session, running, 1, 4, loss=0.01)
        attempt = session.get_one(Attempt, (running.id, running.attempt))
        attempt.started_at -= timedelta(hours=1)  # so that its duration does not pass another one during a test
        rest = [make_job(session, project, file, suffix=suffix).id for suffix in ("b", None)]
        return [done.id, running.id, *rest]


class TestOrder:
    @pytest.mark.parametrize("order", ["asc", "desc"])
    @pytest.mark.parametrize("column", get_args(JobColumn))
    def test_pages_by_a_column_have_each_job_once(
        self, client: TestClient, by_result: list[str], column: str, order: str
    ) -> None:
        whole = ids(client.get(JOBS, params={"order_by": column, "order": order}))
        assert pages(client, JOBS, order_by=column, order=order) == whole
        assert sorted(whole) == sorted(by_result)

    @pytest.mark.parametrize(
        ("column", "order", "first"),
        [("name", "asc", [1, 2, 0]), ("status", "desc", [2 + 1, 2, 0, 1]), ("progress", "desc", [0, 1, 3, 2]),
         ("progress", "asc", [1, 0, 2, 3]), ("duration", "desc", [1, 0, 3, 2]), ("duration", "asc", [0, 1, 2, 3]),
         ("train_loss", "asc", [1, 0]), ("train_loss", "desc", [0, 1])],
    )  # fmt: skip
    def test_a_job_without_the_value_is_last(
        self, client: TestClient, by_result: list[str], column: str, order: str, first: list[int]
    ) -> None:
        found = ids(client.get(JOBS, params={"order_by": column, "order": order}))
        assert found[: len(first)] == [by_result[number] for number in first]


class TestStatus:
    def test_a_status_selects_its_jobs(self, client: TestClient, by_state: dict[str, str]) -> None:
        assert by_state.keys() == {state.value for state in JobState}
        for state, job_id in by_state.items():
            answer = client.get(JOBS, params={"status": state})
            assert ids(answer) == [job_id]
            assert answer.json()["data"][0]["status"] == state

    @pytest.mark.parametrize(
        "query",
        ["status=failed&status=queued", "status=failed,queued", "status=failed,%20queued&status=failed",
         "status[]=failed&status[]=queued", "status=failed&status[]=queued"],
    )  # fmt: skip
    def test_several_statuses_select_their_jobs(self, client: TestClient, by_state: dict[str, str], query: str) -> None:
        assert ids(client.get(f"{JOBS}?{query}")) == [by_state["queued"], by_state["failed"]]

    def test_an_unknown_status_is_refused(self, client: TestClient) -> None:
        for query in ("status=done", "status=failed,done", "status=", "status=FAILED", "status[]=done"):
            error = error_of(client.get(f"{JOBS}?{query}"))
            assert error["param"] in ("status", "status[]")

    def test_a_cursor_outlives_a_change_of_its_job(
        self, client: TestClient, by_state: dict[str, str], sessions: Sessions, project: Project
    ) -> None:
        query = {"status": "queued,failed", "limit": 1}
        assert ids(client.get(JOBS, params=query)) == [by_state["queued"]]
        with transaction(sessions) as session:
            jobs.cancel(session, project.id, by_state["queued"])
        assert ids(client.get(JOBS, params={**query, "after": by_state["queued"]})) == [by_state["failed"]]


class TestCreated:
    def test_created_after_and_before_exclude_their_second(self, client: TestClient, by_time: list[str]) -> None:
        first, second, third = by_time
        shown = client.get(f"{JOBS}/{second}").json()["created_at"]
        assert shown == T + 1
        assert ids(client.get(JOBS, params={"created_after": shown})) == [third]
        assert ids(client.get(JOBS, params={"created_before": shown})) == [first]
        assert ids(client.get(JOBS, params={"created_after": T, "created_before": T + 2})) == [second]
        assert ids(client.get(JOBS, params={"created_after": T + 2, "created_before": T})) == []

    def test_the_last_time_is_a_filter(self, client: TestClient, by_time: list[str]) -> None:
        last = 253_402_300_798
        assert ids(client.get(JOBS, params={"created_after": last})) == []
        assert ids(client.get(JOBS, params={"created_before": last, "created_after": 0})) == by_time[::-1]

    @pytest.mark.parametrize("value", ["", "-1", "1.5", "2026-11-27", "253402300799"])
    def test_a_time_that_is_no_second_is_refused(self, client: TestClient, value: str) -> None:
        for name in ("created_after", "created_before"):
            assert error_of(client.get(JOBS, params={name: value}))["param"] == name


class TestSearch:
    def test_a_search_finds_parts_in_any_case(
        self, client: TestClient, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            file = make_file(session, storage, project, filename="Tickets_100%.jsonl")
            job = make_job(session, project, file, suffix="Support-Bot").id
            other = make_job(session, project, make_file(session, storage, project)).id
        for text in ("port-b", "SUPPORT", job[8:20], "tickets_100%"):
            assert ids(client.get(JOBS, params={"search": text})) == [job], text
        assert ids(client.get(JOBS, params={"search": "tiny"})) == [other, job]
        for text in ("100%j", "t_ny", "\\"):
            assert ids(client.get(JOBS, params={"search": text})) == [], text

    def test_a_search_is_paged_in_both_orders(self, client: TestClient, by_time: list[str]) -> None:
        assert pages(client, JOBS, search="ftjob", order="asc") == list(reversed(pages(client, JOBS, search="ftjob")))


class TestTogether:
    def test_every_filter_must_match_on_every_page(
        self, client: TestClient, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        made = made_at(sessions, storage, project, [T + n for n in range(12)])
        with transaction(sessions) as session:
            for job_id in made[::3]:
                jobs.cancel(session, project.id, job_id)
        wanted = {"status": "cancelled", "created_after": T + 1, "created_before": T + 11, "metadata[n]": "0"}
        assert pages(client, JOBS, **wanted) == [made[6]]
        assert pages(client, JOBS, status="cancelled") == made[9::-3]
        assert pages(client, JOBS, **{"metadata[n]": "1"}) == made[11::-2]

    def test_a_page_that_is_known_already_is_a_304_for_the_same_filter(
        self, client: TestClient, by_state: dict[str, str], sessions: Sessions, project: Project
    ) -> None:
        headers = {"If-None-Match": client.get(JOBS, params={"status": "queued"}).headers["etag"]}
        assert client.get(JOBS, params={"status": "queued"}, headers=headers).status_code == 304
        assert client.get(JOBS, params={"status": "failed"}, headers=headers).status_code == 200
        with transaction(sessions) as session:
            jobs.cancel(session, project.id, by_state["queued"])
        assert ids(client.get(JOBS, params={"status": "queued"}, headers=headers)) == []

    def test_pairs_that_no_job_has_are_refused(self, client: TestClient) -> None:
        for pairs in ({f"metadata[{n}]": "x" for n in range(17)}, {"metadata": "null", "metadata[a]": "x"}):
            assert error_of(client.get(JOBS, params=pairs))["param"] == "metadata"


class TestJobsOfEveryProject:
    @pytest.fixture
    def elsewhere(self, sessions: Sessions, storage: LocalStorage) -> tuple[str, list[str]]:
        """Another project, and two jobs of it."""
        with transaction(sessions) as session:
            other = make_project(session, "other")
        return other.id, made_at(sessions, storage, other, [T, T + 5])

    def test_an_admin_lists_the_jobs_of_every_project(
        self, admin: TestClient, by_time: list[str], elsewhere: tuple[str, list[str]], project: Project
    ) -> None:
        other, foreign = elsewhere
        answer = admin.get(ALL_JOBS)
        assert ids(answer) == [*foreign[::-1], *by_time[::-1]]
        assert [job["project_id"] for job in answer.json()["data"]] == [other, other, *[project.id] * 3]
        own = admin.get(f"{JOBS}/{by_time[0]}").json()
        assert answer.json()["data"][-1] == own | {"project_id": project.id}

    def test_an_admin_filters_by_project(
        self, admin: TestClient, by_time: list[str], elsewhere: tuple[str, list[str]], project: Project
    ) -> None:
        other, foreign = elsewhere
        admin.post(f"{JOBS}/{by_time[1]}/cancel")
        assert ids(admin.get(ALL_JOBS, params={"project_id": other})) == foreign[::-1]
        assert ids(admin.get(ALL_JOBS, params={"status": "cancelled"})) == [by_time[1]]
        assert ids(admin.get(ALL_JOBS, params={"created_after": T + 1})) == [foreign[1], by_time[2]]
        assert ids(admin.get(ALL_JOBS, params={"metadata[n]": "1"})) == [foreign[1], by_time[1]]
        assert pages(admin, ALL_JOBS, status="validating_files") == [*foreign[::-1], by_time[2], by_time[0]]
        assert pages(admin, ALL_JOBS, project_id=project.id, created_before=T + 2) == by_time[1::-1]

    def test_an_unknown_project_or_cursor_is_refused(
        self, admin: TestClient, by_time: list[str], elsewhere: tuple[str, list[str]]
    ) -> None:
        assert error_of(admin.get(ALL_JOBS, params={"project_id": "proj_none"}))["param"] == "project_id"
        assert error_of(admin.get(ALL_JOBS, params={"after": "ftjob-none"}))["param"] == "after"
        wanted = {"project_id": elsewhere[0], "after": by_time[0]}
        assert error_of(admin.get(ALL_JOBS, params=wanted))["param"] == "after"

    def test_only_admins_list_all_jobs(self, client: TestClient, by_time: list[str], sessions: Sessions) -> None:
        assert error_of(client.get(ALL_JOBS), 403)["code"] == "insufficient_permissions"
        with transaction(sessions) as session:
            assert "admin" not in (session.scalar(select(ApiKey.scopes)) or ())
        assert client.get(ALL_JOBS, headers={"Authorization": "Bearer no"}).status_code == 401
