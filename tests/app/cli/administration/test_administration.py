"""The commands of operators, over HTTP with an admin key and on the database: the same answers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer.core
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import select
from typer.main import get_group

from app.cli.administration.http import HttpAdministration
from app.cli.client.http import Client, Json
from app.cli.client.service_discovery import ServiceAddress
from app.cli.errors import CliError
from app.cli.main import app as command_line
from app.db.engine import Sessions, transaction
from app.db.tables import ApiKey, File, Job, Project
from app.services.access import keys
from app.settings import Settings
from app.system import model_registration
from tests.app.cli.conftest import Tunery
from tests.app.db.operations.test_retention import age_everything
from tests.app.test_model_hub import COMMIT, SOURCE, Hub, hub  # noqa: F401  a fixture
from tests.factories import make_webhook_endpoint
from tests.serving import LiveServer
from tests.tiny import make_tiny_base
from worker.base_models import Registrar
from worker.node.resources import open_resources

DEADLINE_SECONDS = 60
MACHINE_COMMANDS = {"up", "doctor", "demo"}  # they start or look at the service of the host that they run on
DATABASE_COMMANDS = {"backup", "restore", "fsck", "storage copy"}


@pytest.fixture
def admin_key(sessions: Sessions, api_key: str) -> str:
    with transaction(sessions) as session:
        session.scalars(select(ApiKey)).one().scopes = list(keys.ADMIN_SCOPES)
    return api_key


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    return make_tiny_base(tmp_path / "models" / "tiny")


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    secret_keys = SecretStr(Fernet.generate_key().decode())
    return settings.model_copy(
        update={
            "base_model_directories": (str(tmp_path / "models"),),
            "base_model_pull_directory": str(tmp_path / "pulled"),
            "secret_keys": secret_keys,
        }
    )


@pytest.fixture(params=["HTTP", "the database"])
def operator(
    request: pytest.FixtureRequest,
    bare_tunery: Tunery,
    live_server: LiveServer,
    admin_key: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Tunery:
    if request.param == "HTTP":
        monkeypatch.setenv("TUNERY_BASE_URL", live_server.root)
        monkeypatch.setenv("TUNERY_API_KEY", admin_key)
    else:
        monkeypatch.setenv("DATABASE_URL", database_url)
    return bare_tunery


@pytest.fixture
def remote(bare_tunery: Tunery, live_server: LiveServer, admin_key: str, monkeypatch: pytest.MonkeyPatch) -> Tunery:
    """The command on a machine without the database."""
    monkeypatch.setenv("TUNERY_BASE_URL", live_server.root)
    monkeypatch.setenv("TUNERY_API_KEY", admin_key)
    return bare_tunery


def test_projects_are_created_changed_archived_and_listed(operator: Tunery) -> None:
    made = operator("projects", "create", "lab", "--max-queued-jobs", "5", "--share-weight", "2", "--json").json
    assert (made["name"], made["archived"], made["limits"]["max_queued_jobs"], made["share_weight"]) == (
        "lab",
        None,
        5,
        2,
    )
    changed = operator("projects", "set", "lab", "--name", "study", "--max-queued-jobs", "none", "--json").json
    assert (changed["id"], changed["name"], changed["limits"]["max_queued_jobs"]) == (made["id"], "study", None)
    shown = operator("projects", "show", made["id"], "--json").json
    assert (shown["usage"]["stored_bytes"], shown["share_weight"]) == (0, 2)
    assert [each["name"] for each in operator("projects", "list", "--json").json] == ["study", "default"]
    assert operator("projects", "archive", "study").out == "study is archived\n"
    assert [each["name"] for each in operator("projects", "list", "--json").json] == ["default"]
    assert len(operator("projects", "list", "--archived", "--json").json) == 2
    assert operator("projects", "unarchive", "study").out == "study is active\n"
    assert operator("projects", "show", "nobody").exit_code == 3
    assert operator("projects", "create", "study").exit_code == 2


def test_keys_are_created_listed_rotated_and_revoked(operator: Tunery, sessions: Sessions) -> None:
    asked = ("keys", "create", "--project", "lab", "--scope", "jobs:write", "--expires-in", "90d", "--json")
    assert operator(*asked).exit_code == 3
    assert operator(*asked, "--create-project", "--scope", "root").exit_code == 2
    assert [each["name"] for each in operator("projects", "list", "--json").json] == ["default"]
    made = operator(*asked, "--create-project").json
    listed = operator("keys", "list", "--json").json[-1]
    assert (listed["id"], listed["project"], listed["scopes"], listed["revoked"]) == (
        made["id"],
        "lab",
        "jobs:write",
        "",
    )
    rotated = operator("keys", "rotate", made["id"], "--overlap", "1h", "--json").json
    assert rotated["old_key_expires"]
    with transaction(sessions) as session:
        assert {keys.find_by_secret(session, each["key"]).id for each in (made, rotated)} == {made["id"]}  # type: ignore[union-attr]
    assert operator("keys", "revoke", made["id"]).exit_code == 0
    with transaction(sessions) as session:
        assert keys.find_by_secret(session, rotated["key"]) is None
    assert operator("keys", "revoke", made["id"]).exit_code == 3
    assert operator("keys", "rotate", "key_none").exit_code == 3
    assert operator("keys", "list", "--json").json[-1]["revoked"]


def test_rotation_of_the_admin_key_on_the_server_replaces_its_file(
    bare_tunery: Tunery, admin_key: str, database_url: str, sessions: Sessions, tmp_path: Path
) -> None:
    file = tmp_path / "admin-key"
    file.write_text(f"{admin_key}\n")
    environment = {"DATABASE_URL": database_url, "TUNERY_DATA_DIR": str(tmp_path)}
    with transaction(sessions) as session:
        key_id = session.scalars(select(ApiKey)).one().id
    rotated = bare_tunery("keys", "rotate", key_id, "--overlap", "1h", env=environment)
    assert (file.read_text(), file.stat().st_mode & 0o777) == (rotated.out, 0o600)
    assert f"{file} has the new secret" in rotated.err
    with transaction(sessions) as session:  # two are active
        assert keys.find_by_secret(session, admin_key) is not None
        assert keys.find_by_secret(session, rotated.out.strip()) is not None


def test_secrets_are_listed_and_re_encrypted(
    operator: Tunery, sessions: Sessions, settings: Settings, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_SECRET_KEYS", settings.secret_keys.get_secret_value())
    with transaction(sessions) as session:
        for number in range(3):
            make_webhook_endpoint(session, project.id, name=f"hook-{number}")
    assert {each["protection"] for each in operator("secrets", "list", "--json").json} == {"unencrypted"}
    assert operator("secrets", "rotate").out == "3 secrets were re-encrypted\n"
    assert {each["protection"] for each in operator("secrets", "list", "--json").json} == {"current"}
    assert operator("secrets", "rotate", "--json").json == {"rotated": 0, "lost": 0}
    assert "rotate" in operator("audit", "list", "--limit", "1", "--json").json[0]["action"]


def test_the_audit_log_is_filtered_and_paged(operator: Tunery) -> None:
    project_id = operator("projects", "create", "lab").out.strip()
    operator("projects", "set", "lab", "--share-weight", "2")
    operator("projects", "create", "other")
    of_lab = ("audit", "list", "--object", project_id)
    [newest, first] = operator(*of_lab, "--json").json
    assert [each["objects"] for each in (newest, first)] == [[project_id], [project_id]]
    assert operator("audit", "list", "--project", "lab", "--json").json[0] == newest
    assert f"--after {newest['id']}" in operator(*of_lab, "--limit", "1").err
    assert operator(*of_lab, "--after", newest["id"], "--json").json == [first]
    assert operator("audit", "list", "--after", "audit_log-none").exit_code in (2, 3)


def test_base_models_are_registered_shown_and_removed(
    operator: Tunery, settings: Settings, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_registration, "can_check", lambda: False)  # the trainer's check takes seconds
    monkeypatch.setattr("app.cli.administration.http.POLL_SECONDS", 0.05)
    with registering(settings):
        done = operator("models", "add", "Org/Tiny", model_directory, "--source", "a/b")
        assert done.exit_code == 0, done.err
        assert done.out.startswith("Org/Tiny: LlamaForCausalLM, ")
        (model_directory / "tokenizer.json").unlink()
        refused = operator("models", "add", "Org/Tiny", model_directory)
        assert (refused.exit_code, "tokenizer.json is missing" in refused.err) == (2, True)
    assert operator("models", "where", "Org/Tiny").out == f"{model_directory}\n"
    assert operator("models", "where", "tony").exit_code == 3
    assert operator("models", "remove", "Org/Tiny").exit_code == 0
    again = operator("models", "remove", "Org/Tiny")
    assert (again.exit_code, "registered: none" in again.err) == (3, True)


def test_a_base_model_is_pulled_from_its_hub_by_a_branch_and_registered_with_its_commit(
    operator: Tunery,
    settings: Settings,
    hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_registration, "can_check", lambda: False)
    monkeypatch.setattr("app.cli.administration.http.POLL_SECONDS", 0.05)
    is_remote = "TUNERY_BASE_URL" in os.environ
    directory = () if is_remote else (tmp_path / "pulled",)
    with registering(settings):
        done = operator("models", "pull", f"{SOURCE}@v1", *directory, "--name", "tiny")
        assert done.exit_code == 0, done.err
        assert f"Downloading 0.00 GB of {SOURCE} ({COMMIT})" in done.err
        unknown = operator("models", "pull", f"{SOURCE}@v9", *directory)
        assert (unknown.exit_code, f"{SOURCE} has no revision v9" in unknown.err) == (2, True)
        wrong_side = operator("models", "pull", SOURCE, *(() if not is_remote else (tmp_path,)))
        assert (wrong_side.exit_code, "DIRECTORY" in wrong_side.err) == (2, True)
    assert operator("models", "where", "tiny").out == f"{tmp_path / 'pulled' / f'tiny-{COMMIT[:12]}'}\n"


def test_aliases_are_set_listed_and_removed(
    operator: Tunery, base_model: str, sessions: Sessions, tmp_path: Path
) -> None:
    assert operator("models", "alias", "gpt-old", base_model).out == f"gpt-old -> {base_model}\n"
    [alias] = operator("models", "aliases", "--json").json
    assert alias == {"name": "gpt-old", "model": base_model, "registered": True}
    unknown = operator("models", "alias", "gpt-old", "nothing")
    assert (unknown.exit_code, f"registered: {base_model}" in unknown.err) == (2, True)
    assert operator("models", "unalias", "gpt-old").exit_code == 0
    assert operator("models", "aliases", "--json").json == []
    assert operator("models", "unalias", "gpt-old").exit_code == 3


def test_urgent_jobs_are_allowed_and_forbidden(operator: Tunery, sessions: Sessions, project: Project) -> None:
    for options, is_allowed in (((), True), (("--forbid",), False)):
        assert operator("allow-urgent", "default", *options).exit_code == 0
        with transaction(sessions) as session:
            assert session.get_one(Project, project.id).may_be_urgent is is_allowed
    assert operator("allow-urgent", "nobody").exit_code == 3


def test_retention_rules_are_previewed_set_and_removed(operator: Tunery, sessions: Sessions, trained_job: Job) -> None:
    with transaction(sessions) as session:
        age_everything(session)
    [rule] = operator("retention", "default", "--files", "90", "--dry-run", "--json").json
    assert (rule["project"], rule["kind"], rule["days"], rule["count"]) == ("default", "files", 90, 1)
    assert operator("retention", "--json").json == []
    operator("retention", "default", "--logs", "30", "--events", "60")
    rules = [("default", "events", 60), ("default", "logs", 30)]
    found = operator("retention", "--json").json
    assert [(each["project"], each["kind"], each["days"]) for each in found] == rules
    assert len(operator("retention", "default", "--files", "90", "--dry-run", "--json").json) == 3
    operator("retention", "default", "--logs", "none", "--events", "none")
    assert operator("retention", "default", "--json").json == []
    assert operator("retention", "nobody").exit_code == 3
    with transaction(sessions) as session:
        assert session.get_one(File, trained_job.training_file_id).deleted_at is None


def test_a_key_without_the_scope_is_refused_with_the_scope(remote: Tunery, sessions: Sessions) -> None:
    made = remote("keys", "create", "--project", "default", "--json").json
    refused = remote("projects", "list", env={"TUNERY_API_KEY": made["key"]})
    assert 'requires the scope "admin"' in refused.err
    assert refused.exit_code != 0


def test_an_address_without_a_key_never_uses_the_database_of_this_machine(bare_tunery: Tunery) -> None:
    refused = bare_tunery("projects", "list", env={"TUNERY_BASE_URL": "http://127.0.0.1:9"})
    assert "Cannot connect to Tunery at http://127.0.0.1:9" in refused.err


def test_two_operators_who_create_the_same_project_at_once_get_one_project_and_one_refusal(
    live_server: LiveServer, admin_key: str
) -> None:
    with ExitStack() as stack:
        address = ServiceAddress(live_server.root, admin_key)
        operators = [HttpAdministration(stack.enter_context(closing(Client(address)))) for _ in range(8)]
        with ThreadPoolExecutor(len(operators)) as pool:
            futures = [pool.submit(operator.create_project, "lab", {}) for operator in operators]
        refusals = [str(future.exception()) for future in futures if future.exception()]
        assert len(refusals) == len(operators) - 1
        assert all('a project "lab" exists already' in refusal for refusal in refusals)
        assert sorted(project.name for project in operators[0].projects(with_archived=True)) == ["default", "lab"]


def test_keys_are_listed_while_another_operator_creates_a_project(live_server: LiveServer, admin_key: str) -> None:
    with closing(Client(ServiceAddress(live_server.root, admin_key))) as client:
        other, get = HttpAdministration(client), client.get

        def get_and_create(path: str, **params: Any) -> Json:
            found = get(path, **params)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(client, "get", get)
                other.create_key(f"lab-{len(path)}", "key", ["jobs:read"], None, create_project=True)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client, "get", get_and_create)
            assert [key.project for key in other.api_keys()] == ["default"]


def test_a_base_model_that_another_operator_removes_at_once_is_named() -> None:
    class ClientOfTheSecond:
        def post(self, path: str, _: Json) -> Json:
            return {"id": "reg_1", "status": "succeeded", "notes": [], "error": None}

        def get(self, path: str, **_: Any) -> Json:
            return {"data": [], "has_more": False}

        def pages(self, *_: Any, **__: Any) -> Iterator[Json]:
            return iter(())

    client: Any = ClientOfTheSecond()
    with pytest.raises(CliError, match="has been removed since"):
        HttpAdministration(client)._register("Org/Tiny", {}, lambda _: None)


def test_commands_that_need_the_host_say_so_in_their_help() -> None:
    help_by_name = {name: command.help or "" for name, command in _commands(get_group(command_line))}
    on_the_server = {name for name, text in help_by_name.items() if "(on the server)" in text}
    assert on_the_server == DATABASE_COMMANDS
    assert [name for name in MACHINE_COMMANDS if "this machine" not in help_by_name[name]] == []


@contextmanager
def registering(settings: Settings) -> Iterator[None]:
    """A worker that runs registrations."""
    resources = open_resources(settings)
    registrar = Registrar(resources, "export.cpu0@test#1")
    has_ended = threading.Event()

    def work() -> None:
        while not has_ended.wait(0.05):
            registrar.run_next()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join(DEADLINE_SECONDS)
        resources.close()


def _commands(group: typer.core.TyperGroup, prefix: str = "") -> list[tuple[str, typer.core.TyperCommand]]:
    found = []
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            found += _commands(command, f"{prefix}{name} ")
        else:
            found.append((f"{prefix}{name}", command))
    return found
