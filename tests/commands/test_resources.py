"""What is alike for the commands of every resource: list, show, delete, `--json`, and tables in 80 columns."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
import typer.core
from rich.cells import cell_len
from typer.main import get_group

from app.cli.main import app as command_line
from app.cli.output import results
from app.cli.output.console import fit_table
from app.db.tables import Job
from app.settings import Settings
from tests.commands.conftest import Tunery
from tests.serving import LiveServer

WITHOUT_JSON = {"up", "demo", "mcp"}
JOB = "{job}"  # a job that has succeeded


class Case(NamedTuple):
    """The commands of a resource, in the order of an object's life; {id} is what `created` returns by `--json`."""

    path: str  # of the API
    create: str
    list: str
    show: str = ""
    delete: str = ""
    key: str = "id"  # of the object, in the output of `create --json`
    is_kept: bool = False  # in the list, after the deletion


CASES = {
    "files": Case("files", "files upload {dataset}", "files list", "files get {id}", "files delete {id}"),
    "jobs": Case(
        "fine_tuning/jobs",
        "jobs create --model tiny --training-file {dataset}",
        "jobs list",
        "jobs get {id}",
        "jobs cancel {id}",
        is_kept=True,
    ),
    "exports": Case(
        f"fine_tuning/jobs/{JOB}/exports",
        f"jobs export {JOB} --detach",
        f"jobs exports {JOB}",
        delete=f"jobs delete-export {JOB} {{id}}",
    ),
    "deliveries": Case(
        f"fine_tuning/jobs/{JOB}/deliveries",
        f"jobs deliver {JOB} --to shelf --detach",
        f"jobs deliveries {JOB}",
        delete=f"jobs withdraw {JOB} {{id}}",
        is_kept=True,
    ),
    "targets": Case(
        "delivery_targets",
        "targets create t --kind directory --set path=/srv/adapters/t",
        "targets list",
        "targets show {id}",
        "targets delete {id}",
        key="name",
    ),
    "webhooks": Case(
        "webhook_endpoints",
        "webhooks create https://hooks.example.com/tunery",
        "webhooks list",
        delete="webhooks delete {id}",
    ),
    "projects": Case(
        "organization/projects",
        "projects create lab",
        "projects list",
        "projects show {id}",
        "projects archive {id}",
    ),
    "keys": Case(
        "organization/api_keys",
        "keys create --project default",
        "keys list",
        delete="keys revoke {id}",
        is_kept=True,
    ),
    "aliases": Case(
        "organization/model_aliases",
        "models alias gpt-old tiny",
        "models aliases",
        delete="models unalias {id}",
    ),
    "base models": Case(
        "organization/base_models",
        "models where tiny",
        "models where tiny",
        delete="models remove {id}",
    ),
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"delivery_directories": ("/srv/adapters",)})


@pytest.fixture
def words(operator: Tunery, trained_job: Job, dataset: Path) -> dict[str, str]:
    """What the commands of the cases name."""
    operator("targets", "create", "shelf", "--kind", "directory", "--set", "path=/srv/adapters/shelf")
    return {"job": trained_job.id, "dataset": str(dataset)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_object_is_created_listed_shown_and_deleted(
    operator: Tunery,
    words: dict[str, str],
    live_server: LiveServer,
    api_key: str,
    monkeypatch: pytest.MonkeyPatch,
    case: Case,
) -> None:
    def run(command: str) -> Sequence[str]:
        return shlex.split(command.format(**words))

    def api(path: str) -> object:
        answer = httpx2.get(f"{live_server.url}/{path}", headers={"Authorization": f"Bearer {api_key}"})
        assert answer.is_success, answer.text
        return answer.json()

    made = operator(*run(case.create), "--json").json
    words["id"] = made[case.key]
    listed = operator(*run(case.list), "--json").json
    rows = listed if isinstance(listed, list) else [listed]
    [mine] = [row for row in rows if row[case.key] == words["id"]]
    of_api = api(case.path.format(**words))
    assert isinstance(of_api, dict)
    assert [row for row in of_api["data"] if row.items() <= mine.items()] != []  # every field, as the API returned it
    tables: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = []
    with monkeypatch.context() as patch:
        patch.setattr(results, "print_table", lambda titles, rows, _: tables.append((titles, rows)))
        operator(*run(case.list))
    for titles, rows_shown in tables:
        lines = [line.plain for line in fit_table(titles, rows_shown, 80).lines]
        assert any(words["id"] in line for line in lines) or case.key == "name"
        assert max(map(cell_len, lines)) <= 80
    if case.show:
        shown = operator(*run(case.show), "--json").json
        assert shown == api(f"{case.path.format(**words)}/{words['id']}")
        assert words["id"] in operator(*run(case.show)).out
    deleted = operator(*run(case.delete))
    assert (deleted.exit_code, deleted.err) == (0, "")
    assert deleted.out.startswith(words["id"]) or made.get("name", "") in deleted.out
    if not case.is_kept:
        after = operator(*run(case.list), "--json")
        assert after.exit_code == 3 or words["id"] not in [row[case.key] for row in after.json]
        again = operator(*run(case.delete))
        assert again.exit_code == 3 or case.list == "projects list"


def commands(group: typer.core.TyperGroup, prefix: str = "") -> dict[str, typer.core.TyperCommand]:
    found: dict[str, typer.core.TyperCommand] = {}
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            found |= commands(command, f"{prefix}{name} ")
        elif isinstance(command, typer.core.TyperCommand):
            found[f"{prefix}{name}"] = command
    return found


ALL = commands(get_group(command_line))


def test_every_command_prints_json() -> None:
    without = {name for name, command in ALL.items() if not any("--json" in each.opts for each in command.params)}
    assert without == WITHOUT_JSON
