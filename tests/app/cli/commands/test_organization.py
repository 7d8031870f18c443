"""`tunery projects`, `tunery keys` and `tunery audit`, straight on the database."""

from __future__ import annotations

import getpass

import pytest
from sqlalchemy import select

from app.db.engine import Sessions, transaction
from app.db.tables import ApiKey, AuditEntry, Project
from app.services.access import keys
from tests.app.cli.conftest import Tunery


@pytest.fixture
def operator(bare_tunery: Tunery, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Tunery:
    """Somebody with a database and no API."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return bare_tunery


class TestProjects:
    def test_are_created_with_limits_in_the_units_of_people(self, operator: Tunery, sessions: Sessions) -> None:
        done = operator(
            "projects", "create", "research", "--max-stored-bytes", "1.5TB", "--max-gpu-hours", "10",
            "--max-running-jobs", "2", "--share-weight", "3",
        )  # fmt: skip
        assert done.exit_code == 0, done.err
        with transaction(sessions) as session:
            project = session.get_one(Project, done.out.strip())
        assert (project.name, project.share_weight, project.max_running_jobs) == ("research", 3, 2)
        assert (project.max_stored_bytes, project.max_gpu_seconds_per_month) == (1_500_000_000_000, 36_000)

    def test_lose_a_limit_by_none_and_keep_the_others(self, operator: Tunery) -> None:
        operator("projects", "create", "lab", "--max-queued-jobs", "5", "--max-running-jobs", "1")
        done = operator("projects", "set", "lab", "--name", "study", "--max-queued-jobs", "none", "--json").json
        assert done["name"] == "study"
        assert (done["limits"]["max_queued_jobs"], done["limits"]["max_running_jobs"]) == (None, 1)

    def test_show_what_they_use(self, operator: Tunery) -> None:
        project_id = operator("projects", "create", "lab").out.strip()
        shown = operator("projects", "show", project_id, "--json").json
        assert shown["usage"]["stored_bytes"] == 0
        assert "0 queued, 0 running" in operator("projects", "show", "lab").out

    def test_are_listed_until_they_are_archived(self, operator: Tunery) -> None:
        operator("projects", "create", "lab")
        assert [each["name"] for each in operator("projects", "list", "--json").json] == ["lab"]
        assert operator("projects", "archive", "lab").exit_code == 0
        assert operator("projects", "list", "--json").json == []
        assert len(operator("projects", "list", "--archived", "--json").json) == 1

    def test_are_opened_again(self, operator: Tunery) -> None:
        operator("projects", "create", "lab")
        operator("projects", "archive", "lab")
        assert operator("projects", "unarchive", "lab").out.strip() == "lab is active"
        assert [each["name"] for each in operator("projects", "list", "--json").json] == ["lab"]
        assert operator("projects", "unarchive", "lab").exit_code == 0
        actions = [entry["action"] for entry in operator("audit", "list", "--project", "lab", "--json").json]
        assert actions == ["projects.unarchive", "projects.archive", "projects.create"]
        assert operator("projects", "unarchive", "nobody").exit_code == 3

    @pytest.mark.parametrize(
        ("arguments", "exit_code"),
        [
            (("create", " "), 2),
            (("create", "lab", "--max-stored-bytes", "much"), 2),
            (("create", "lab", "--max-queued-jobs", "5GB"), 2),
            (("create", "lab", "--max-queued-jobs", "-1"), 2),
            (("create", "lab", "--max-stored-bytes", "1e30"), 2),
            (("create", "lab", "--max-requests-per-second", "0"), 2),
            (("create", "lab", "--share-weight", "nan"), 2),
            (("show", "nobody"), 3),
            (("set", "nobody"), 3),
        ],
    )
    def test_invalid_ones_are_errors_in_one_sentence(
        self, operator: Tunery, arguments: tuple[str, ...], exit_code: int
    ) -> None:
        done = operator("projects", *arguments)
        assert done.exit_code == exit_code
        assert done.err.startswith(("Error: ", "Usage: "))

    def test_an_existing_name_is_refused(self, operator: Tunery) -> None:
        operator("projects", "create", "lab")
        assert 'a project "lab" exists already' in operator("projects", "create", "lab").err


class TestKeys:
    def test_get_scopes_and_an_end(self, operator: Tunery, sessions: Sessions) -> None:
        done = operator(
            "keys",
            "create",
            "--project",
            "lab",
            "--scope",
            "jobs:write",
            "--scope",
            "files:read",
            "--expires-in",
            "90d",
        )
        with transaction(sessions) as session:
            key = keys.find_by_secret(session, done.out.strip())
            assert key is not None
            assert key.scopes == ["files:read", "jobs:write"]
            assert key.expires_at is not None
            assert 90 * 86_400 - 60 < (key.expires_at - key.created_at).total_seconds() < 90 * 86_400 + 60

    def test_rotate_and_the_old_one_works_a_while(self, operator: Tunery, sessions: Sessions) -> None:
        made = operator("keys", "create", "--project", "lab", "--json").json
        turned = operator("keys", "rotate", made["id"], "--overlap", "1h")
        with transaction(sessions) as session:
            for secret in (made["key"], turned.out.strip()):
                found = keys.find_by_secret(session, secret)
                assert found is not None
                assert found.id == made["id"]
        again = operator("keys", "rotate", made["id"], "--overlap", "0s").out.strip()
        with transaction(sessions) as session:
            assert keys.find_by_secret(session, turned.out.strip()) is None
            assert keys.find_by_secret(session, again) is not None

    @pytest.mark.parametrize(
        ("arguments", "exit_code"),
        [
            (("create", "--project", "lab", "--scope", "root"), 2),
            (("create", "--project", "lab", "--expires-in", "soon"), 2),
            (("create", "--project", "lab", "--expires-in", "1s"), 2),
            (("rotate", "key_none"), 3),
            (("revoke", "key_none"), 3),
        ],
    )
    def test_invalid_ones_are_errors_and_create_nothing(
        self, operator: Tunery, sessions: Sessions, arguments: tuple[str, ...], exit_code: int
    ) -> None:
        assert operator("keys", *arguments).exit_code == exit_code
        with transaction(sessions) as session:
            assert session.scalars(select(ApiKey)).all() == []
            assert session.scalars(select(Project)).all() == []


class TestAudit:
    def test_has_every_command_of_an_operator_that_changed_something(self, operator: Tunery) -> None:
        project_id = operator("projects", "create", "lab").out.strip()
        operator("projects", "set", "lab", "--share-weight", "2")
        key_id = operator("keys", "create", "--project", "lab", "--json").json["id"]
        operator("keys", "rotate", key_id)
        operator("keys", "revoke", key_id)
        operator("keys", "list")
        operator("keys", "revoke", key_id)
        recorded = operator("audit", "list", "--json").json
        assert [(entry["action"], entry["objects"], entry["project_id"]) for entry in reversed(recorded)] == [
            ("projects.create", [project_id], project_id),
            ("projects.set_project", [project_id], project_id),
            ("keys.create", [key_id], project_id),
            ("keys.rotate", [key_id], project_id),
            ("keys.revoke", [key_id], project_id),
        ]
        assert {entry["actor_type"] for entry in recorded} == {"operator"}
        assert recorded[0]["actor"].startswith(f"{getpass.getuser()}@")

    def test_is_paged_and_filtered(self, operator: Tunery) -> None:
        for name in ("a", "b", "c"):
            operator("projects", "create", name)
        page = operator("audit", "list", "--limit", "2", "--json").json
        rest = operator("audit", "list", "--after", page[-1]["id"], "--json").json
        assert (len(page), len(rest)) == (2, 1)
        assert len(operator("audit", "list", "--project", "b", "--json").json) == 1
        assert len(operator("audit", "list", "--object", page[0]["objects"][0], "--json").json) == 1
        assert operator("audit", "list", "--actor", "key_none", "--json").json == []
        assert f"--after {page[-1]['id']}" in operator("audit", "list", "--limit", "2").err
        assert operator("audit", "list", "--after", "none").exit_code == 3

    def test_has_a_base_model_that_was_offered(self, operator: Tunery, sessions: Sessions, base_model: str) -> None:
        operator("models", "remove", base_model)
        with transaction(sessions) as session:
            (entry,) = session.scalars(select(AuditEntry))
        assert (entry.action, entry.object_ids, entry.project_id) == ("models.remove", [base_model], None)
