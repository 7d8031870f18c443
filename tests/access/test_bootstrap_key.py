from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.tables import ApiKey, AuditEntry
from app.main import create_app
from app.services.access import keys, projects
from app.services.access.keys import ensure_first_key
from app.settings import Settings
from app.storage import LocalStorage
from tests.factories import find_key

SECRET = "a-secret-of-the-operator-0123456789"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "admin-key"
    path.write_text(f"{SECRET}\n", encoding="utf-8")
    return path


def key_rows(sessions: Sessions) -> list[ApiKey]:
    with transaction(sessions) as session:
        return list(session.scalars(select(ApiKey)))


class TestEnsureFirstKey:
    def test_issues_an_admin_key_of_the_default_project_once(self, sessions: Sessions, key_file: Path) -> None:
        for _ in range(2):
            ensure_first_key(sessions, key_file)
        (key,) = key_rows(sessions)
        assert key.is_admin
        with transaction(sessions) as session:
            project = projects.find(session, "default")
            assert project is not None
            assert key.project_id == project.id

    def test_leaves_a_revoked_key_revoked(self, sessions: Sessions, key_file: Path) -> None:
        ensure_first_key(sessions, key_file)
        (key,) = key_rows(sessions)
        with transaction(sessions) as session:
            keys.revoke(session, None, key.id)
        ensure_first_key(sessions, key_file)
        (key,) = key_rows(sessions)
        assert key.revoked_at is not None

    def test_leaves_a_secret_that_two_rotations_replaced_invalid(self, sessions: Sessions, key_file: Path) -> None:
        ensure_first_key(sessions, key_file)
        for _ in range(2):
            with transaction(sessions) as session:
                keys.rotate(session, None, session.scalars(select(ApiKey.id)).one(), overlap_seconds=60)
        ensure_first_key(sessions, key_file)
        assert len(key_rows(sessions)) == 1
        with transaction(sessions) as session:
            assert find_key(session, SECRET) is None

    @pytest.mark.parametrize("content", ["", "x" * 19, "with spaces in it, and long", "nötig-nötig-nötig-nötig"])
    def test_refuses_an_invalid_secret(self, sessions: Sessions, key_file: Path, content: str) -> None:
        key_file.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="at least 20 printable ASCII characters"):
            ensure_first_key(sessions, key_file)
        assert key_rows(sessions) == []

    def test_runs_when_the_api_starts(
        self, settings: Settings, storage: LocalStorage, sessions: Sessions, key_file: Path
    ) -> None:
        started = settings.model_copy(update={"admin_key_file": key_file})
        with TestClient(create_app(started, storage=storage)) as client:
            assert client.get("/v1/files", headers={"Authorization": f"Bearer {SECRET}"}).status_code == 200
        with transaction(sessions) as session:
            (entry,) = session.scalars(select(AuditEntry))
        assert (entry.action, entry.actor_type, entry.actor_id) == ("keys.first", "system", "api")
