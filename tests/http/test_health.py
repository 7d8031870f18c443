from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from app.storage import LocalStorage


class TestHealthz:
    def test_a_process_is_alive_without_a_database(self, settings: Settings, storage: LocalStorage) -> None:
        away = settings.model_copy(update={"database_url": "postgresql+psycopg://me@127.0.0.1:1/x"})
        with TestClient(create_app(away, storage=storage)) as client:
            assert client.get("/healthz").json() == {"status": "ok"}

    def test_probes_accept_head(self, client: TestClient, base_model: str) -> None:
        for path in ("/healthz", "/readyz"):
            assert client.head(path).status_code == 200


class TestReadyz:
    def test_a_whole_service_is_ready(self, client: TestClient, base_model: str) -> None:
        answer = client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json()["status"] == "ready"
        assert all(check["ok"] for check in answer.json()["checks"].values())

    def test_waits_for_the_first_base_model(self, client: TestClient) -> None:
        assert self.failed(client) == {"base_model"}

    def test_needs_a_storage_that_can_be_written(
        self, client: TestClient, base_model: str, storage: LocalStorage
    ) -> None:
        storage.staging.rmdir()
        assert self.failed(client) == {"storage"}

    def test_needs_the_database(self, unready: TestClient) -> None:
        assert self.failed(unready) == {"database", "broker"}

    def test_reports_a_broker_that_is_down_but_does_without_it(
        self, settings: Settings, storage: LocalStorage, base_model: str
    ) -> None:
        away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
        with TestClient(create_app(away, storage=storage)) as client:
            answer = client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json()["checks"]["broker"]["ok"] is False

    @pytest.fixture
    def unready(self, tmp_path: Path) -> Iterator[TestClient]:
        nowhere = Settings(
            database_url="postgresql://me@127.0.0.1:1/x", redis_url="redis://127.0.0.1:1/0", data_dir=tmp_path
        )
        with TestClient(create_app(nowhere)) as client:
            yield client

    @staticmethod
    def failed(client: TestClient) -> set[str]:
        answer = client.get("/readyz")
        assert answer.status_code == 503
        return {name for name, check in answer.json()["checks"].items() if not check["ok"]}
