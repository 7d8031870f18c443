"""`?wait=`, event streams and the project's stream, over a socket: who waits holds no thread and no connection."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, text
from sqlalchemy import update as update_rows

from app.api.routes import streams
from app.db.engine import Sessions, transaction
from app.db.fast_reads.pool import AsyncConnections
from app.db.jobs import jobs, leases
from app.db.tables import ApiKey, Job, Project
from app.main import create_app
from app.services.access import keys, projects
from app.settings import Settings
from app.storage import LocalStorage
from tests.conftest import DISCONNECT_OTHERS
from tests.deadline import until
from tests.factories import (
    append_step_event,
    finish_job,
    forecast_queue,
    lease_of,
    make_file,
    make_job,
    start_job,
    validate_job,
)
from tests.serving import LiveServer, serve

BUSY = """SELECT count(*) FROM pg_stat_activity
          WHERE state = 'active' AND pid <> pg_backend_pid() AND datname = current_database()"""
LISTENERS = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"


AT_ONCE = 45.0  # the client's timeout, below the 60 seconds for which the server would wait


@pytest.fixture
def http(live_server: LiveServer, api_key: str) -> Iterator[httpx2.Client]:
    with client_of(live_server, api_key) as client:
        yield client


@pytest.fixture
def aside() -> Iterator[Callable[..., Any]]:
    """Run something in a thread; its `.result()`."""
    with ThreadPoolExecutor(60) as pool:
        yield pool.submit


def client_of(server: LiveServer, api_key: str) -> httpx2.Client:
    headers, limits = {"Authorization": f"Bearer {api_key}"}, httpx2.Limits(max_connections=100)
    return httpx2.Client(base_url=server.url, headers=headers, trust_env=False, timeout=30, limits=limits)


def step(sessions: Sessions, job: Job, number: int) -> None:
    with transaction(sessions) as session:
        append_step_event(session, session.get_one(Job, job.id), number, 100)


def is_listening(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.scalar(text(LISTENERS)))


def path_of(job: Job, *rest: str) -> str:
    return "/".join((f"fine_tuning/jobs/{job.id}", *rest))


def frames(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Server-sent events as {field: value}; a comment has the field ""."""
    frame: dict[str, str] = {}
    for line in lines:
        if not line:
            yield frame
            frame = {}
            continue
        name, _, value = line.partition(":")
        frame[name] = value.strip()


class TestWait:
    def test_a_wait_ends_at_a_change(
        self, http: httpx2.Client, running: Job, sessions: Sessions, aside: Callable[..., Any]
    ) -> None:
        waiting = aside(http.get, path_of(running), params={"wait": 60}, timeout=AT_ONCE)
        steps = itertools.count(1)

        def is_answered() -> bool:
            """It waits for what happens after its first look, whenever that is."""
            if not waiting.done():
                step(sessions, running, next(steps))
            return bool(waiting.done())

        until(is_answered, "an answer", interval_seconds=0.2)
        answer = waiting.result()
        assert (answer.status_code, answer.json()["status"]) == (200, "running")

    def test_an_older_etag_is_answered_at_once(self, http: httpx2.Client, job: Job, sessions: Sessions) -> None:
        etag = http.get(path_of(job)).headers["etag"]
        with transaction(sessions) as session:
            validate_job(session)
        answer = http.get(path_of(job), params={"wait": 60}, headers={"If-None-Match": etag}, timeout=AT_ONCE)
        assert answer.json()["status"] == "queued"

    def test_a_timeout_is_a_304_for_a_known_etag(self, http: httpx2.Client, job: Job) -> None:
        first = http.get(path_of(job), params={"wait": 0.2})
        assert first.status_code == 200
        known = {"If-None-Match": first.headers["etag"]}
        again = http.get(path_of(job), params={"wait": 0.2}, headers=known)
        assert (again.status_code, again.content) == (304, b"")

    def test_a_renewed_lease_is_no_change(self, http: httpx2.Client, running: Job, sessions: Sessions) -> None:
        etag = http.get(path_of(running)).headers["etag"]
        with transaction(sessions) as session:
            leases.renew(session, Job, lease_of(running), 500)
        assert http.get(path_of(running), headers={"If-None-Match": etag}).status_code == 304

    def test_a_job_that_is_over_is_not_waited_for(self, http: httpx2.Client, job: Job, sessions: Sessions) -> None:
        with transaction(sessions) as session:
            jobs.cancel(session, job.project_id, job.id)
        assert http.get(path_of(job), params={"wait": 60}, timeout=AT_ONCE).json()["status"] == "cancelled"

    def test_a_place_in_the_queue_is_a_change(
        self, http: httpx2.Client, job: Job, sessions: Sessions, storage: LocalStorage, project: Project,
        aside: Callable[..., Any], engine: Engine,
    ) -> None:  # fmt: skip
        with transaction(sessions) as session:
            second = make_job(session, project, make_file(session, storage, project))
            validate_job(session)
            validate_job(session)
            forecast_queue(session)
        etag = http.get(path_of(second)).headers["etag"]
        waiting = aside(http.get, path_of(second), params={"wait": 20}, headers={"If-None-Match": etag})
        until(lambda: is_listening(engine), "a LISTEN connection")
        with transaction(sessions) as session:
            start_job(session)
            forecast_queue(session)
        assert waiting.result().json()["queue_position"] == 1

    def test_a_change_by_another_process_ends_a_wait(
        self, http: httpx2.Client, job: Job, settings: Settings, storage: LocalStorage, api_key: str,
        aside: Callable[..., Any], engine: Engine,
    ) -> None:  # fmt: skip
        etag = http.get(path_of(job)).headers["etag"]
        waiting = aside(http.get, path_of(job), params={"wait": 20}, headers={"If-None-Match": etag})
        until(lambda: is_listening(engine), "a LISTEN connection")
        with serve(create_app(settings, storage=storage)) as other:
            headers = {"Authorization": f"Bearer {api_key}"}
            url = f"{other.url}/{path_of(job, 'cancel')}"
            assert httpx2.post(url, headers=headers, trust_env=False).status_code == 200
        assert waiting.result().json()["status"] == "cancelled"

    def test_fifty_waits_hold_no_thread_and_no_connection(
        self, app: FastAPI, api_key: str, job: Job, engine: Engine, aside: Callable[..., Any]
    ) -> None:
        with serve(app) as server, client_of(server, api_key) as http:
            known = {"If-None-Match": http.get(path_of(job)).headers["etag"]}
            threads = threading.active_count()
            waiting = [aside(http.get, path_of(job), params={"wait": 4}, headers=known) for _ in range(50)]
            until(lambda: app.state.app_state.notifications.subscription_count == 50, "fifty who wait")
            assert threading.active_count() - threads <= 50  # those of this test's own clients
            with engine.connect() as connection:
                until(lambda: connection.scalar(text(BUSY)) == 0, "idle connections", seconds=2)
            assert {each.result().status_code for each in waiting} == {304}

    def test_fifty_waiting_requests_share_the_reads_after_one_change(
        self, app: FastAPI, api_key: str, job: Job, sessions: Sessions, engine: Engine, aside: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        looks: list[None] = []
        read = AsyncConnections.fetch_all
        monkeypatch.setattr(AsyncConnections, "fetch_all", lambda *given: (looks.append(None), read(*given))[1])
        with serve(app) as server, client_of(server, api_key) as http:
            known = {"If-None-Match": http.get(path_of(job)).headers["etag"]}
            waiting = [aside(http.get, path_of(job), params={"wait": 20}, headers=known) for _ in range(50)]
            until(lambda: app.state.app_state.notifications.subscription_count == 50, "fifty who wait")
            until(lambda: is_listening(engine), "a LISTEN connection")
            looks.clear()
            with transaction(sessions) as session:
                validate_job(session)
            assert {each.result().json()["status"] for each in waiting} == {"queued"}
        assert len(looks) < 50  # three each would be 150

    def test_a_disconnect_ends_a_wait(self, app: FastAPI, api_key: str, job: Job) -> None:
        with serve(app) as server, client_of(server, api_key) as http:
            changes = app.state.app_state.notifications
            for path in (f"{path_of(job)}?wait=60", path_of(job, "events", "stream"), "events/stream"):
                with pytest.raises(httpx2.ReadTimeout), http.stream("GET", path, timeout=0.5) as answer:
                    list(answer.iter_lines())
                until(lambda: changes.subscription_count == 0, "nobody who waits")

    def test_a_revoked_key_ends_a_wait(
        self, http: httpx2.Client, job: Job, sessions: Sessions, aside: Callable[..., Any], engine: Engine
    ) -> None:
        etag = http.get(path_of(job)).headers["etag"]
        waiting = aside(http.get, path_of(job), params={"wait": 20}, headers={"If-None-Match": etag})
        until(lambda: is_listening(engine), "a LISTEN connection")
        with transaction(sessions) as session:
            session.execute(update_rows(ApiKey).values(revoked_at=text("now()")))
            validate_job(session)
        assert waiting.result().status_code == 401


class TestLists:
    @pytest.mark.parametrize("path", ["", "/{id}/events", "/{id}/checkpoints", "/{id}/metrics"])
    def test_a_list_is_a_304_until_a_change(
        self, http: httpx2.Client, running: Job, sessions: Sessions, path: str
    ) -> None:
        url = f"fine_tuning/jobs{path.format(id=running.id)}"
        etag = http.get(url).headers["etag"]
        same = http.get(url, headers={"If-None-Match": etag})
        assert (same.status_code, same.content) == (304, b"")
        step(sessions, running, 1)
        assert http.get(url, headers={"If-None-Match": etag}).status_code == 200


class TestJobStream:
    def test_a_stream_has_each_event_once_and_ends_with_the_job(
        self, http: httpx2.Client, running: Job, sessions: Sessions, storage: LocalStorage, project: Project,
        aside: Callable[..., Any],
    ) -> None:  # fmt: skip
        ready = threading.Barrier(6)

        def follow() -> list[dict[str, str]]:
            with http.stream("GET", path_of(running, "events", "stream")) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                received = []
                for frame in frames(answer.iter_lines()):
                    received.append(frame)
                    if frame.get("id") == "3":
                        ready.wait(20)
                return received

        followers = [aside(follow) for _ in range(5)]
        ready.wait(20)
        for number in range(1, 21):
            step(sessions, running, number)
        with transaction(sessions) as session:
            finish_job(session, storage, project, session.get_one(Job, running.id))
        events = http.get(path_of(running, "events"), params={"limit": 100}).json()["data"][::-1]
        for follower in followers:
            received = [frame for frame in follower.result() if "data" in frame]
            assert received.pop() == {"event": "end", "data": '{"status": "succeeded"}'}
            assert [int(frame["id"]) for frame in received] == list(range(1, len(events) + 1))
            assert [json.loads(frame["data"]) for frame in received] == events

    def test_a_stream_continues_after_the_last_event(self, http: httpx2.Client, job: Job, sessions: Sessions) -> None:
        with transaction(sessions) as session:
            jobs.cancel(session, job.project_id, job.id)
        stream = path_of(job, "events", "stream")
        first = http.get(path_of(job, "events")).json()["data"][-1]["id"]
        for asked in ({"headers": {"Last-Event-ID": "1"}}, {"params": {"after": first}}):
            received = [frame for frame in frames(iter(http.get(stream, **asked).text.split("\n"))) if "id" in frame]
            assert [frame["id"] for frame in received] == ["2"]
        assert http.get(stream, headers={"Last-Event-ID": "2"}).status_code == 204
        for wrong in ("3", "ftevent-nothere", "-1"):
            refused = http.get(stream, headers={"Last-Event-ID": wrong})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "Last-Event-ID"

    def test_a_stream_ends_with_its_key(
        self, http: httpx2.Client, job: Job, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streams, "KEEPALIVE_SECONDS", 0.1)
        monkeypatch.setattr(streams, "KEY_CHECK_INTERVAL_SECONDS", 0.2)
        for path in (path_of(job, "events", "stream"), "events/stream"):
            with transaction(sessions) as session:
                key = keys.issue(session, session.get_one(Project, job.project_id), "short")
            received = []
            with http.stream("GET", path, headers={"Authorization": f"Bearer {key.secret}"}) as answer:
                for frame in frames(answer.iter_lines()):
                    received.append(frame)
                    if len(received) == 6:
                        with transaction(sessions) as session:
                            keys.revoke(session, None, key.id)
            assert received[5] == {"": "ping"}

    def test_a_stream_outlives_its_database_connection(
        self, http: httpx2.Client, running: Job, sessions: Sessions, engine: Engine
    ) -> None:
        with http.stream("GET", path_of(running, "events", "stream")) as answer:
            received = frames(answer.iter_lines())
            assert next(frame for frame in received if frame.get("id") == "4")
            until(lambda: is_listening(engine), "a LISTEN connection")
            with engine.connect() as connection:
                connection.execute(text(DISCONNECT_OTHERS))
            step(sessions, running, 1)
            assert next(frame for frame in received if "id" in frame)["id"] == "5"


class TestProjectStream:
    def test_the_project_stream_names_changed_jobs(
        self, http: httpx2.Client, running: Job, sessions: Sessions, storage: LocalStorage, engine: Engine
    ) -> None:
        with transaction(sessions) as session:
            other = projects.ensure(session, "other")
            foreign = make_job(session, other, make_file(session, storage, other))
        with http.stream("GET", "events/stream") as answer:
            received = (json.loads(frame["data"]) for frame in frames(answer.iter_lines()) if "data" in frame)
            assert next(received) == {"object": "fine_tuning.job.changed", "job_id": None}
            until(lambda: is_listening(engine), "a LISTEN connection")
            with transaction(sessions) as session:
                jobs.cancel(session, other.id, foreign.id)
            step(sessions, running, 1)
            assert next(each for each in received if each["job_id"])["job_id"] == running.id
