"""`tunery backup`, `tunery restore --list` and `tunery fsck`, as an operator types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select, text

from app.db import migrate
from app.db.engine import Sessions, make_engine, transaction
from app.db.tables import AuditEntry
from app.services.operations import backup
from app.settings import Settings
from app.storage import LocalStorage
from tests.commands.conftest import Tunery
from tests.factories import make_file, make_project


@pytest.fixture
def operator(bare_tunery: Tunery, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Tunery:
    """An operator on the server, with a database and a data directory."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("TUNERY_DATA_DIR", str(settings.data_dir))
    return bare_tunery


@pytest.fixture
def stored_key(sessions: Sessions, storage: LocalStorage) -> str:
    with transaction(sessions) as session:
        return make_file(session, storage, make_project(session)).storage_key


def test_a_backup_is_listed_and_is_in_the_audit_log(
    operator: Tunery, stored_key: str, sessions: Sessions, tmp_path: Path
) -> None:
    made = operator("backup", tmp_path / "backups", "--json").json
    assert (made["objects"], made["copied"], made["damaged"]) == (1, 1, {})
    assert operator("restore", tmp_path / "backups", "--list").out.strip() == made["name"]
    assert operator("restore", tmp_path / "backups", "--list", "--json").json == [made["name"]]
    with transaction(sessions) as session:
        (entry,) = session.scalars(select(AuditEntry))
    assert (entry.action, entry.object_ids) == ("backups.create", [made["name"]])


def test_a_damaged_file_is_found_and_restored_from_the_backup(
    operator: Tunery, stored_key: str, storage: LocalStorage, tmp_path: Path
) -> None:
    operator("backup", tmp_path / "backups")
    (storage.objects / stored_key).unlink()
    broken = operator("fsck")
    assert broken.exit_code == 1
    assert f"{stored_key}: missing" in broken.out
    assert "remain: 1" in broken.err
    copy = tmp_path / "backups" / "objects" / stored_key
    content = copy.read_bytes()
    copy.write_bytes(b"damaged")
    failed = operator("fsck", "--repair", "--from", tmp_path / "backups")
    assert (failed.exit_code, "; not repaired: " in failed.out) == (1, True)
    copy.write_bytes(content)
    assert operator("fsck", "--repair", "--from", tmp_path / "backups").exit_code == 0
    assert operator("fsck").exit_code == 0


@pytest.mark.parametrize("inside", ["backups", "storage/objects"])
def test_a_backup_inside_the_data_directory_is_refused(operator: Tunery, settings: Settings, inside: str) -> None:
    done = operator("backup", settings.data_dir / inside)
    assert done.exit_code == 2


def test_a_restore_over_a_used_data_directory_is_refused(
    operator: Tunery, stored_key: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator("backup", tmp_path / "backups")
    monkeypatch.delenv("DATABASE_URL")
    done = operator("restore", tmp_path / "backups")
    assert (done.exit_code, f"{settings.data_dir} is not empty" in done.err) == (2, True)
    assert operator("restore", tmp_path, "--list").exit_code == 2  # no directory of backups


def test_a_backup_reads_the_storage_of_the_running_service(
    bare_tunery: Tunery,
    stored_key: str,
    settings: Settings,
    storage: LocalStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = tmp_path / "elsewhere"
    storage.root.rename(elsewhere)
    runtime = {"database_url": settings.database_url, "storage": {"storage_url": elsewhere.as_uri()}}
    settings.data_dir.mkdir(exist_ok=True)
    (settings.data_dir / "runtime.json").write_text(json.dumps(runtime))
    monkeypatch.setenv("TUNERY_DATA_DIR", str(settings.data_dir))
    made = bare_tunery("backup", tmp_path / "backups", "--json").json
    assert (made["copied"], made["damaged"]) == (1, {})


def test_a_restore_names_what_was_damaged_at_the_time_of_the_backup(
    operator: Tunery,
    stored_key: str,
    storage: LocalStorage,
    blank_database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (storage.objects / stored_key).unlink()
    assert operator("backup", tmp_path / "backups").exit_code == 1
    monkeypatch.setenv("DATABASE_URL", blank_database_url)
    monkeypatch.setenv("TUNERY_DATA_DIR", str(tmp_path / "restored"))
    done = operator("restore", tmp_path / "backups")
    assert done.exit_code == 0
    assert f"{stored_key}: missing" in done.err


def test_keep_deletes_older_backups_and_a_name_selects_one(
    operator: Tunery, stored_key: str, blank_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (operator("backup", tmp_path / "backups", "--keep", "2", "--json").json for _ in range(3))
    assert [each["deleted"] for each in (first, second, third)] == [[], [], [first["name"]]]
    monkeypatch.setenv("DATABASE_URL", blank_database_url)
    monkeypatch.setenv("TUNERY_DATA_DIR", str(tmp_path / "restored"))
    unknown = operator("restore", tmp_path / "backups", "--name", first["name"])
    assert (unknown.exit_code, third["name"] in unknown.err) == (3, True)
    done = operator("restore", tmp_path / "backups", "--name", second["name"], "--json")
    assert done.json == {"name": second["name"], "damaged": {}, "copy": False}
    assert (tmp_path / "restored" / "storage" / "objects" / stored_key).exists()


def test_a_backup_of_an_earlier_schema_is_restored_with_migrate(
    operator: Tunery, blank_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", blank_database_url)
    engine = make_engine(blank_database_url)
    migrate.upgrade(engine)
    migrate.downgrade(engine, "-1")
    with monkeypatch.context() as earlier_release:
        earlier_release.setattr(backup, "is_current", lambda connection: True)
        operator("backup", tmp_path / "backups")
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    monkeypatch.setenv("TUNERY_DATA_DIR", str(tmp_path / "restored"))
    refused = operator("restore", tmp_path / "backups")
    assert (refused.exit_code, "give --migrate" in refused.err) == (1, True)
    assert operator("restore", tmp_path / "backups", "--migrate").exit_code == 0
    with engine.connect() as connection:
        assert migrate.is_current(connection)
    engine.dispose()


def test_a_check_of_sizes_reads_no_file(operator: Tunery, stored_key: str, storage: LocalStorage) -> None:
    path = storage.objects / stored_key
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"#")
    assert operator("fsck", "--sizes-only").exit_code == 0
    [finding] = json.loads(operator("fsck", "--json").out)
    assert (finding["key"], finding["problem"], finding["repaired"]) == (stored_key, "wrong content", None)
    path.write_bytes(content[:-1])
    assert f"{stored_key}: wrong size" in operator("fsck", "--sizes-only").out


def test_from_needs_repair(operator: Tunery, tmp_path: Path) -> None:
    assert operator("fsck", "--from", tmp_path).exit_code == 2
