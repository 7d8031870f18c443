"""What the first start leaves in the database, and what later starts leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select, text

from app.cli.local_stack import first_run
from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.machine import CannotStart
from app.db.base_models import models
from app.db.engine import Sessions, transaction
from app.db.tables import ApiKey, Project
from tests.factories import find_key
from tests.tiny import make_tiny_base


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@pytest.fixture(autouse=True)
def no_given_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNERY_ADMIN_KEY_FILE", raising=False)


class TestAdminKey:
    def test_the_first_start_creates_a_key_of_the_project_default_and_keeps_it_0600(
        self, sessions: Sessions, layout: Layout
    ) -> None:
        created = first_run.ensure_admin_key(sessions, layout)
        assert created is not None
        assert created.startswith("tnry_")
        assert layout.admin_key.read_text().strip() == created
        assert layout.admin_key.stat().st_mode & 0o777 == 0o600
        with transaction(sessions) as session:
            key = find_key(session, created)
            assert key is not None
            assert key.is_admin
            assert session.scalars(select(Project.name)).all() == ["default"]
        assert first_run.ensure_admin_key(sessions, layout) is None
        assert layout.admin_key.read_text().strip() == created

    def test_a_start_cut_short_between_file_and_database_is_finished_by_the_next(
        self, sessions: Sessions, layout: Layout
    ) -> None:
        layout.admin_key.write_text("tnry_abc_0123456789012345678901234567890\n")
        assert first_run.ensure_admin_key(sessions, layout) == "tnry_abc_0123456789012345678901234567890"

    def test_a_removed_key_file_is_not_replaced_by_another_key(self, sessions: Sessions, layout: Layout) -> None:
        first_run.ensure_admin_key(sessions, layout)
        layout.admin_key.unlink()
        assert first_run.ensure_admin_key(sessions, layout) is None
        assert not layout.admin_key.exists()
        with transaction(sessions) as session:
            assert len(session.scalars(select(ApiKey)).all()) == 1

    def test_a_key_from_a_secret_file_is_used(
        self, sessions: Sessions, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secret = layout.root / "secret"
        secret.write_text("0123456789abcdef0123456789abcdef\n")
        monkeypatch.setenv("TUNERY_ADMIN_KEY_FILE", str(secret))
        assert first_run.ensure_admin_key(sessions, layout) == secret.read_text().strip()
        assert first_run.ensure_admin_key(sessions, layout) is None
        assert layout.admin_key.read_text() == secret.read_text()

    @pytest.mark.parametrize(("text", "says"), [("short", "at least 20"), (None, "cannot be read")])
    def test_a_useless_secret_file_is_refused(
        self, sessions: Sessions, layout: Layout, monkeypatch: pytest.MonkeyPatch, text: str | None, says: str
    ) -> None:
        if text is not None:
            (layout.root / "secret").write_text(text)
        monkeypatch.setenv("TUNERY_ADMIN_KEY_FILE", str(layout.root / "secret"))
        with pytest.raises(CannotStart, match=says):
            first_run.ensure_admin_key(sessions, layout)


class TestPreparedDatabase:
    def test_a_database_that_does_not_answer_stops_the_start(self) -> None:
        with (
            pytest.raises(CannotStart, match=r"does not answer.*DATABASE_URL"),
            first_run.prepared_database("postgresql://me@127.0.0.1:1/x"),
        ):
            pass

    def test_a_database_of_a_newer_release_stops_the_start(self, sessions: Sessions, database_url: str) -> None:
        with transaction(sessions) as session:
            session.execute(text("UPDATE alembic_version SET version_num = 'tomorrow'"))
        with pytest.raises(CannotStart, match=r"newer Tunery"), first_run.prepared_database(database_url):
            pass


class TestBaseModel:
    def test_a_registered_directory_stays_until_it_has_moved(self, sessions: Sessions, tmp_path: Path) -> None:
        def registered_of(directory: Path) -> list[Path]:
            assert first_run.register_base_model(sessions, directory)
            with transaction(sessions) as session:
                return [Path(row.directory) for row in models.list_base(session)]

        theirs, bundled = make_tiny_base(tmp_path / "theirs"), make_tiny_base(tmp_path / "bundled")
        assert registered_of(theirs) == registered_of(bundled) == [theirs]  # perhaps of an operator
        theirs.rename(tmp_path / "away")
        assert registered_of(bundled) == [bundled]
