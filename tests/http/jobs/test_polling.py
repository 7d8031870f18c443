from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from app.db.engine import Sessions, make_engine, transaction
from app.db.fast_reads.pool import AsyncConnections
from app.db.tables import Job
from app.errors import Unavailable
from tests.factories import append_step_event, start_job, validate_job

JOBS = "/v1/fine_tuning/jobs"


class TestGetJob:
    def test_a_new_job_is_read_as_it_was_created(self, client: TestClient, base_model: str, training_file: str) -> None:
        """A creation returns the job without a read."""
        more = {"metadata": {"größe": "☃"}, "trainingType": "standard"}
        body = {"model": base_model, "training_file": training_file} | more
        created = client.post("/v1/fine_tuning/jobs", json=body).json()
        assert created == client.get(f"/v1/fine_tuning/jobs/{created['id']}").json()

    def test_each_change_has_another_etag(self, client: TestClient, job: Job, sessions: Sessions) -> None:
        seen = {client.get(f"{JOBS}/{job.id}").headers["etag"]}
        client.post(f"{JOBS}/{job.id}", json={"metadata": {"a": "b"}})
        seen.add(client.get(f"{JOBS}/{job.id}").headers["etag"])
        with transaction(sessions) as session:
            validate_job(session)
        seen.add(client.get(f"{JOBS}/{job.id}").headers["etag"])
        with transaction(sessions) as session:
            start_job(session)
        seen.add(client.get(f"{JOBS}/{job.id}").headers["etag"])
        with transaction(sessions) as session:
            append_step_event(session, session.get_one(Job, job.id), 1, 10)
        seen.add(client.get(f"{JOBS}/{job.id}").headers["etag"])
        assert len(seen) == 5

    def test_a_running_job_has_progress_and_an_expected_end(
        self, client: TestClient, job: Job, sessions: Sessions
    ) -> None:
        with transaction(sessions) as session:
            validate_job(session)
            running = start_job(session)
            append_step_event(session, running, 3, 10)
        body = client.get(f"{JOBS}/{job.id}").json()
        assert body["status"] == "running"
        assert body["phase"] == "training"
        assert body["progress"] == {
            "step": 3,
            "total_steps": 10,
            "epoch": 0.3,
            "tokens_per_second": 100.0,
            "eta_seconds": 7.0,
        }
        assert (body["trained_steps"], body["total_steps"]) == (3, 10)
        assert body["estimated_finish"] > body["created_at"]


class TestAsyncConnections:
    def test_connections_are_limited(self, database_url: str) -> None:
        query = "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = 'counted'"
        engine = make_engine(f"{database_url}&application_name=counted")

        async def ask_often() -> int:
            connections = AsyncConnections(engine, limit=3)
            rows = await asyncio.gather(*(connections.fetch_one(query, {}) for _ in range(30)))
            await connections.close()
            return max(int(row.n) for row in rows)

        assert asyncio.run(ask_often()) <= 3

    def test_connections_that_the_server_ended_are_replaced(self, database_url: str, sessions: Sessions) -> None:
        async def ask_twice() -> None:
            connections = AsyncConnections(make_engine(database_url), limit=2)
            await asyncio.gather(*(connections.fetch_one("SELECT pg_sleep(0.01)", {}) for _ in range(2)))
            with ThreadPoolExecutor() as pool:
                await asyncio.get_running_loop().run_in_executor(pool, self.end_all_others, sessions)
            row = await connections.fetch_one("SELECT 7 AS n", {})
            assert row.n == 7
            await connections.close()

        asyncio.run(ask_twice())

    def test_an_absent_server_is_unavailable(self) -> None:
        async def ask() -> None:
            await AsyncConnections(make_engine("postgresql+psycopg://me@127.0.0.1:1/x"), limit=1).fetch_one("", {})

        with pytest.raises(Unavailable):
            asyncio.run(ask())

    @staticmethod
    def end_all_others(sessions: Sessions) -> None:
        query = """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        with transaction(sessions) as session:
            session.execute(text(query))
