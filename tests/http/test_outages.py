"""Servers that are really stopped."""

from __future__ import annotations

import time
from pathlib import Path

from starlette.testclient import TestClient

from app.cli.local_stack.servers import LocalPostgres, LocalValkey
from app.db import migrate
from app.db.engine import Sessions, make_engine, make_sessions, transaction
from app.db.jobs import claims
from app.main import create_app
from app.settings import Settings
from app.storage import LocalStorage
from tests.factories import chat_lines, make_key, make_project
from tests.http.test_auth import asked, routes
from tests.stack import THROWAWAY, open_directory


class TestPostgresDown:
    def test_requests_are_503_until_the_database_is_back(self, redis_url: str, tmp_path: Path) -> None:
        with open_directory() as directory:
            server = LocalPostgres(directory / "pg", **THROWAWAY)
            try:
                server.start()
                settings = Settings(database_url=server.url, redis_url=redis_url, data_dir=tmp_path)
                headers = {"Authorization": f"Bearer {self.prepare(settings)}"}
                with TestClient(create_app(settings), headers=headers, raise_server_exceptions=False) as client:
                    assert client.get("/v1/fine_tuning/jobs").status_code == 200
                    server.stop()
                    self.assert_every_operation_is_unavailable(client)
                    assert list(tmp_path.glob("storage/*/*")) == []
                    server.start()
                    for path in ("/v1/fine_tuning/jobs", "/v1/files"):
                        assert client.get(path).status_code == 200
                    assert client.get("/v1/fine_tuning/jobs/ftjob-nothere").status_code == 404
            finally:
                server.stop()

    @staticmethod
    def prepare(settings: Settings) -> str:
        engine = make_engine(settings.database_url)
        migrate.upgrade(engine)
        with transaction(make_sessions(engine)) as session:
            secret = make_key(session, make_project(session))
        engine.dispose()
        return secret

    @staticmethod
    def assert_every_operation_is_unavailable(client: TestClient) -> None:
        began = time.monotonic()
        for method, path in routes(client.app):  # type: ignore[arg-type]
            answer = client.request(method, asked(path))
            assert answer.status_code == 503, (method, path, answer.text)
            assert method == "HEAD" or answer.json()["error"]["code"] == "service_unavailable"
            assert int(answer.headers["retry-after"]) > 0
        assert time.monotonic() - began < 100  # all of them; one that waits for a connection takes 30 seconds


class TestRedisDown:
    def test_accepts_jobs_that_a_worker_finds_by_itself(
        self, settings: Settings, storage: LocalStorage, sessions: Sessions, api_key: str, base_model: str
    ) -> None:
        with open_directory() as directory:
            broker = LocalValkey(directory / "vk")
            broker.start()
            away = settings.model_copy(update={"redis_url": broker.url})
            headers = {"Authorization": f"Bearer {api_key}"}
            with TestClient(create_app(away, storage=storage), headers=headers) as client:
                broker.stop()
                file = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": chat_lines()}).json()
                began = time.monotonic()
                body = {"model": base_model, "training_file": file["id"]}
                answer = client.post("/v1/fine_tuning/jobs", json=body)
                assert answer.status_code == 200
                assert time.monotonic() - began < 60  # an attempt to reach the broker is not awaited
        with transaction(sessions) as session:
            job = claims.claim(session, "validate", "worker", 60)
            assert job is not None
            assert job.id == answer.json()["id"]
