"""`tunery keys`, `audit` and `secrets`; tests/commands/test_resources.py has what is alike for all."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import make_url, select

from app.cli.client import database
from app.db.engine import Sessions, transaction
from app.db.tables import ApiKey, AuditEntry, Project
from app.services.access import keys
from app.settings import Settings
from tests.commands.conftest import Tunery
from tests.factories import find_key, make_webhook_endpoint
from tests.kept_engines import kept_engines
from tests.sentences import Reviewed

NOWHERE = "postgresql://nobody:secret@127.0.0.1:1/nothing"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"secret_keys": SecretStr(Fernet.generate_key().decode())})


@pytest.fixture
def on_database(bare_tunery: Tunery, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tunery]:
    """The command of an operator who has the database, and neither an API nor a key."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    with kept_engines(database):
        yield bare_tunery


def found(sessions: Sessions, secret: str) -> ApiKey | None:
    with transaction(sessions) as session:
        return find_key(session, secret)


class TestKeys:
    def test_a_key_has_scopes_and_an_end_and_is_rotated_and_revoked(self, operator: Tunery, sessions: Sessions) -> None:
        asked = ("keys", "create", "--project", "lab", "--scope", "jobs:write", "--expires-in", "90d", "--json")
        made = operator(*asked, "--create-project").json
        key = found(sessions, made["value"])
        assert key is not None
        assert (key.id, key.scopes, key.expires_at is not None) == (made["id"], ["jobs:write"], True)
        assert made["expires_at"] - made["created_at"] == 90 * 86_400
        rotated = operator("keys", "rotate", made["id"], "--overlap", "1h", "--json").json
        assert rotated["previous_value_expires_at"] > made["created_at"]
        assert [getattr(found(sessions, each["value"]), "id", None) for each in (made, rotated)] == [made["id"]] * 2
        operator("keys", "rotate", made["id"], "--overlap", "0s")
        assert found(sessions, rotated["value"]) is None
        listed = operator("keys", "list").out.splitlines()
        assert listed[-1].split()[:4] == [made["id"], "lab", "cli", "jobs:write"]
        assert made["value"] not in "".join(listed)
        assert operator("keys", "revoke", made["id"]).out == f"{made['id']} revoked\n"
        assert operator("keys", "revoke", made["id"]).exit_code == 3
        assert operator("keys", "list", "--json").json[-1]["revoked_at"]

    def test_a_key_without_the_scope_is_refused_with_the_scope(self, tunery: Tunery, reviewed: Reviewed) -> None:
        refused = tunery("projects", "list")
        assert refused.exit_code == 4
        reviewed(refused.err)

    def test_the_rotated_admin_key_of_a_data_directory_replaces_its_file(
        self, operator: Tunery, api_key: str, sessions: Sessions, tmp_path: Path
    ) -> None:
        file = tmp_path / "admin-key"
        file.write_text(f"{api_key}\n")
        other, own = operator("keys", "create", "--project", "default", "--json").json["id"], found(sessions, api_key)
        assert own is not None
        operator("keys", "rotate", other, "--data-dir", tmp_path)
        assert file.read_text() == f"{api_key}\n"
        rotated = operator("keys", "rotate", own.id, "--overlap", "1h", "--data-dir", tmp_path)
        assert (file.read_text(), file.stat().st_mode & 0o777) == (rotated.out, 0o600)


class TestWithoutAnApi:
    """`tunery keys create --database`: for the first key, and after the loss of the last admin key."""

    def test_the_first_key_creates_its_project_and_a_later_one_only_with_the_option(
        self, on_database: Tunery, sessions: Sessions
    ) -> None:
        create = ("keys", "create", "--database", "--scope", "all", "--scope", "admin", "--project")
        first = on_database(*create, "team")
        assert getattr(found(sessions, first.out.strip()), "scopes", None) == list(keys.ADMIN_SCOPES)
        refused = on_database(*create, "taem")
        assert (refused.exit_code, refused.out, "--create-project" in refused.err) == (3, "", True)
        assert on_database(*create, "other", "--create-project").exit_code == 0
        made = on_database(*create, "team", "--json").json
        assert getattr(found(sessions, made["value"]), "id", None) == made["id"]
        with transaction(sessions) as session:
            assert sorted(session.scalars(select(Project.name))) == ["other", "team"]
            entries = session.scalars(select(AuditEntry)).all()
        assert [(each.action, each.actor_type) for each in entries] == [("keys.create", "operator")] * 3
        assert {each.actor_id.split("@")[0] for each in entries} == {getpass.getuser()}

    def test_every_other_command_of_an_administrator_says_how_to_make_a_key(
        self, on_database: Tunery, live_server: object, monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed
    ) -> None:
        monkeypatch.setenv("TUNERY_BASE_URL", live_server.root)  # type: ignore[attr-defined]
        refused = on_database("projects", "list")
        assert refused.exit_code == 4
        reviewed(refused.err)

    def test_a_wrong_database_is_named_without_its_password(
        self, bare_tunery: Tunery, postgres_server: str, tmp_path: Path, reviewed: Reviewed
    ) -> None:
        empty = make_url(postgres_server).set(database="postgres").render_as_string(hide_password=False)
        for url, exit_code in ((NOWHERE, 1), ("nonsense", 2), ("mysql://x/y", 2), ("", 1), (empty, 1)):
            done = bare_tunery("keys", "create", "--database", "--project", "x", env={"DATABASE_URL": url})
            assert (done.exit_code, "secret" in done.err) == (exit_code, False)
            if url != empty:  # its address is another one in each run
                reviewed(done.err.replace(str(tmp_path), "HERE"))


def test_the_audit_log_is_filtered_and_paged(operator: Tunery) -> None:
    project_id = operator("projects", "create", "lab").out.strip()
    operator("projects", "set", "lab", "--share-weight", "2")
    operator("projects", "create", "other")
    of_lab = ("audit", "list", "--object", project_id)
    [newest, first] = operator(*of_lab, "--json").json
    assert [each["object_ids"] for each in (newest, first)] == [[project_id], [project_id]]
    assert operator("audit", "list", "--project", "lab", "--json").json[0] == newest
    assert operator("audit", "list", "--actor", "key_none", "--json").json == []
    page = operator(*of_lab, "--limit", "1")
    assert (newest["actor"]["id"] in page.out, f"--after {newest['id']}" in page.err) == (True, True)
    assert operator(*of_lab, "--after", newest["id"], "--json").json == [first]
    assert operator("audit", "list", "--after", "audit_log-none").exit_code in (2, 3)


@pytest.mark.parametrize("place", ["HTTP", "the database"])
def test_secrets_are_listed_and_re_encrypted(
    operator: Tunery, sessions: Sessions, settings: Settings, project: Project, monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:  # fmt: skip
    if place == "the database":
        monkeypatch.setenv("DATABASE_URL", settings.database_url)
        monkeypatch.setenv("TUNERY_SECRET_KEYS", settings.secret_keys.get_secret_value())
    with transaction(sessions) as session:
        for number in range(3):
            make_webhook_endpoint(session, project.id, name=f"hook-{number}")
    assert {each["protection"] for each in operator("secrets", "list", "--json").json} == {"unencrypted"}
    assert operator("secrets", "rotate").out.split()[0] == "3"
    assert {each["protection"] for each in operator("secrets", "list", "--json").json} == {"current"}
    assert operator("secrets", "rotate", "--json").json == {"rotated": 0, "lost": 0}
    assert "rotate" in operator("audit", "list", "--limit", "1", "--json").json[0]["type"]
