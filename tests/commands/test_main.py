from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from typer.core import TyperCommand, TyperGroup

from app.cli.command_tree import PANELS
from app.cli.main import app as command_line
from tests.commands.conftest import Tunery, command_tree
from tests.sentences import Reviewed
from tests.stack import temporary_database

HEAVY = ("sqlalchemy", "httpx2", "fastapi", "celery", "psutil", "psycopg", "jinja2", "torch", "transformers", "worker")


def test_help_loads_neither_database_nor_http_nor_torch() -> None:
    check = f"import sys, app.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def leaves(group: TyperGroup, *names: str) -> Iterator[tuple[str, TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from leaves(command, *names, name)
        elif isinstance(command, TyperCommand):
            yield " ".join((*names, name)), command


def test_every_command_of_the_first_help_is_in_one_group() -> None:
    grouped = [name for names in PANELS.values() for name in names]
    assert sorted(grouped) == sorted(command_tree(command_line).commands)


def test_every_command_prints_json_but_those_that_run_a_service() -> None:
    without = [
        name
        for name, each in leaves(command_tree(command_line))
        if not any("--json" in one.opts for one in each.params)
    ]
    assert sorted(without) == ["demo", "mcp", "up"]


def test_no_help_shows_a_value_of_a_flag_or_a_type_of_python(bare_tunery: Tunery) -> None:
    for words in ([], ["jobs"], ["jobs", "create"], ["jobs", "watch"], ["files", "upload"], ["webhooks", "create"]):
        shown = bare_tunery(*words, "--help").out
        assert [word for word in ("<bool>", "<str>", "<int", "<float", "list[") if word in shown] == []
    assert "--metadata" in bare_tunery("jobs", "create", "--help").out


def test_the_names_that_people_guess_stand_for_commands(bare_tunery: Tunery) -> None:
    for words in ("jobs ls", "jobs show", "jobs status", "jobs stop", "jobs update", "jobs rm", "files rm",
                  "keys rm", "keys delete", "models rm",
                  "projects get", "projects update", "targets get", "webhooks remove"):  # fmt: skip
        assert bare_tunery(*words.split(), "--help").exit_code == 0, words
    assert bare_tunery("evals", "rm").exit_code == 2
    assert bare_tunery().exit_code == 0
    assert bare_tunery("-V").out == bare_tunery("--version").out


def test_a_command_of_another_group_is_named(bare_tunery: Tunery) -> None:
    for words, command in (("upload", "tunery files upload"), ("jobs validate", "tunery files validate")):
        done = bare_tunery(*words.split())
        assert (done.exit_code, f"`{command}`" in " ".join(done.err.replace("│", "").split())) == (2, True)
    assert "`" not in bare_tunery("create").err  # too many


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["jobs", "get"], ["jobs", "list", "--limit", "0"], ["up", "--port", "-1"]]
)
def test_a_usage_error_is_exit_code_2(bare_tunery: Tunery, arguments: list[str]) -> None:
    assert bare_tunery(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ZeroDivisionError("division by zero"), 1),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=["bug", "system", "Ctrl-C"],
)
def test_an_error_is_a_sentence_without_a_stack_trace(
    bare_tunery: Tunery, monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed, error: BaseException, exit_code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("app.cli.options.find_service", fail)
    done = bare_tunery("jobs", "list")
    assert done.exit_code == exit_code
    reviewed(done.err)


def test_a_foreign_directory_is_refused_by_up_in_a_sentence(bare_tunery: Tunery, tmp_path: Path) -> None:
    (tmp_path / "somebody-elses").write_text("")
    done = bare_tunery("up", "--data-dir", tmp_path, "--port", "0")
    assert done.exit_code == 1
    assert "Traceback" not in done.err
    assert os.listdir(tmp_path) == ["somebody-elses"]
    for options in ([], ["--json"]):
        assert bare_tunery("doctor", "--data-dir", tmp_path, *options).exit_code == 1


def test_doctor_reports_on_the_data_directory_it_is_given(bare_tunery: Tunery, tmp_path: Path) -> None:
    done = bare_tunery("doctor", "--data-dir", tmp_path / "new")
    assert done.exit_code == int(any(line.startswith("problem ") for line in done.out.splitlines()))
    assert str(tmp_path / "new") in done.out
    assert not (tmp_path / "new").exists()


def test_doctor_before_an_upgrade_reads_the_database_of_the_environment(
    bare_tunery: Tunery, database_url: str, tmp_path: Path
) -> None:
    environment = {"DATABASE_URL": database_url, "TUNERY_DATA_DIR": str(tmp_path), "TUNERY_NO_SUCH_SETTING": "1"}
    environment["TUNERY_STORAGE_URL"] = "invalid"
    done = bare_tunery("doctor", "--before-upgrade", "--json", env=environment)
    assert done.exit_code == 0
    (settings,) = [check for check in done.json if check["name"] == "settings"]
    assert (settings["level"], "TUNERY_NO_SUCH_SETTING" in settings["observed"]) == ("advice", True)
    without = bare_tunery("doctor", "--before-upgrade", "--data-dir", tmp_path)
    assert (without.exit_code, "DATABASE_URL" in without.err) == (1, True)


def test_doctor_before_an_upgrade_refuses_a_schema_without_the_columns_that_it_reads(
    bare_tunery: Tunery, postgres_server: str
) -> None:
    with temporary_database(postgres_server, "too_old_to_upgrade") as url:
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute("CREATE TABLE jobs ()")
        done = bare_tunery("doctor", "--before-upgrade", env={"DATABASE_URL": url})
    assert (done.exit_code, "tables of a release that can be upgraded" in done.err) == (1, True)


def test_the_command_works_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "app.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip()[0].isdigit()
