from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, update
from starlette.testclient import TestClient

from app.api import bootstrap_guard
from app.db.engine import Sessions, make_engine, make_sessions, transaction
from app.db.tables import ApiKey, Project
from app.errors import NotBootstrapped
from app.main import create_app
from app.settings import Settings
from app.storage import LocalStorage
from tests.api_objects import error_of
from tests.factories import make_key

ROOT = Path(__file__).resolve().parents[3]
OUTSIDE = "http://192.0.2.7:8000"


class TestBindHost:
    @pytest.mark.parametrize(
        ("arguments", "environment", "host"),
        [
            ([], {}, "127.0.0.1"),
            ([], {"UVICORN_HOST": "0.0.0.0"}, "0.0.0.0"),
            (["--port", "1", "--host", "::"], {"UVICORN_HOST": "127.0.0.1"}, "::"),
            (["--host=10.0.0.1"], {}, "10.0.0.1"),
            (["--host"], {}, ""),
        ],
    )
    def test_the_bind_host_is_the_one_given_to_uvicorn(
        self, arguments: list[str], environment: dict[str, str], host: str
    ) -> None:
        assert bootstrap_guard.bind_host(["uvicorn", *arguments], environment) == host


@pytest.mark.parametrize("host", ["127.8.8.8", "::1", "localhost", "::ffff:127.0.0.1"])
def test_loopback_addresses_are_recognised(host: str) -> None:
    assert bootstrap_guard.is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "::ffff:10.0.0.1", "example.org"])
def test_other_addresses_are_not_loopback(host: str) -> None:
    assert not bootstrap_guard.is_loopback(host)


class TestTheStart:
    def test_a_start_on_the_network_is_refused_without_a_key(self, sessions: Sessions) -> None:
        bootstrap_guard.require_api_key(sessions, "127.0.0.1")
        with pytest.raises(NotBootstrapped, match="tunery keys create"):
            bootstrap_guard.require_api_key(sessions, "0.0.0.0")

    @pytest.mark.parametrize("end", ["expires_at", "revoked_at"])
    def test_a_key_allows_a_start_on_the_network_until_it_ends(
        self, sessions: Sessions, project: Project, end: str
    ) -> None:
        with transaction(sessions) as session:
            make_key(session, project)
        bootstrap_guard.require_api_key(sessions, "0.0.0.0")
        with transaction(sessions) as session:
            session.execute(update(ApiKey).values({end: func.clock_timestamp()}))
        with pytest.raises(NotBootstrapped):
            bootstrap_guard.require_api_key(sessions, "0.0.0.0")

    def test_a_start_does_not_wait_for_the_database(self) -> None:
        nowhere = make_engine("postgresql+psycopg://me@127.0.0.1:1/x")
        bootstrap_guard.require_api_key(make_sessions(nowhere), "0.0.0.0")

    def test_the_real_server_ends_before_it_listens(self, settings: Settings, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "--factory", "app.main:app_from_environment", "--port", str(port)]
        done = subprocess.run(
            [*command, "--host", "0.0.0.0"], cwd=ROOT, capture_output=True, text=True, timeout=60,
            env={
                "PATH": os.environ["PATH"], "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url,
                "TUNERY_DATA_DIR": str(tmp_path), "TUNERY_BEHIND_PROXY": "true",
            },
        )  # fmt: skip
        assert done.returncode != 0
        assert "No API key exists yet" in done.stderr
        assert "Uvicorn running" not in done.stderr


class TestTheGuard:
    """Where a server listens is its own affair; through which address a request came in is on the connection."""

    def test_other_machines_are_refused_until_there_is_a_key(
        self, settings: Settings, storage: LocalStorage, sessions: Sessions, project: Project
    ) -> None:
        app = create_app(settings, storage=storage)
        with TestClient(app, base_url=OUTSIDE) as outside:
            for path in ("/healthz", "/docs", "/openapi.json", "/v1/files"):
                answer = outside.get(path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_api_key")
                assert answer.headers["x-request-id"]
            assert TestClient(app, base_url="http://127.0.0.1:8000").get("/healthz").status_code == 200
            with transaction(sessions) as session:
                secret = make_key(session, project)
            assert outside.get("/healthz").status_code == 200
            assert outside.get("/v1/files", headers={"Authorization": f"Bearer {secret}"}).status_code == 200

    def test_other_machines_are_refused_while_the_database_is_unavailable(
        self, storage: LocalStorage, tmp_path: Path
    ) -> None:
        away = Settings(database_url="postgresql://me@127.0.0.1:1/x", redis_url="redis://nowhere", data_dir=tmp_path)
        with TestClient(create_app(away, storage=storage), base_url=OUTSIDE) as outside:
            assert error_of(outside.get("/healthz"), 503)["code"] == "service_unavailable"

    def test_other_machines_are_accepted_with_a_first_key_from_a_file(
        self, settings: Settings, storage: LocalStorage, tmp_path: Path
    ) -> None:
        (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef")
        started = settings.model_copy(update={"admin_key_file": tmp_path / "key"})
        with TestClient(create_app(started, storage=storage, host="0.0.0.0"), base_url=OUTSIDE) as outside:
            assert outside.get("/healthz").status_code == 200
