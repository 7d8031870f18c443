from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.cli.conftest import Tunery

COMMANDS = ("up", "doctor", "demo", "files", "jobs", "adapters", "models", "keys")
HEAVY = ("sqlalchemy", "httpx2", "fastapi", "celery", "psutil", "psycopg", "torch", "transformers", "worker")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_help_and_has_its_own(bare_tunery: Tunery, command: str) -> None:
    assert f" {command} " in bare_tunery("--help").out
    done = bare_tunery(command, "--help")
    assert (done.exit_code, done.err) == (0, "")


def test_help_loads_neither_database_nor_http_nor_torch() -> None:
    check = f"import sys, app.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_arguments_it_shows_its_help(bare_tunery: Tunery) -> None:
    assert "Commands" in bare_tunery().out


def test_it_has_a_version(bare_tunery: Tunery) -> None:
    done = bare_tunery("--version")
    assert done.exit_code == 0
    assert done.out.strip()[0].isdigit()


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["jobs", "get"], ["jobs", "list", "--limit", "0"], ["up", "--port", "-1"]]
)
def test_a_usage_error_is_exit_code_2(bare_tunery: Tunery, arguments: list[str]) -> None:
    assert bare_tunery(*arguments).exit_code == 2


class TestErrors:
    def test_an_unexpected_error_is_one_sentence_that_names_the_debug_variable(
        self, bare_tunery: Tunery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.cli.options.find_service", lambda *_: 1 / 0)
        done = bare_tunery("jobs", "list")
        assert done.exit_code == 1
        assert "ZeroDivisionError" in done.err
        assert "TUNERY_DEBUG=1" in done.err
        assert "Traceback" not in done.err

    def test_an_error_of_the_system_names_the_file(self, bare_tunery: Tunery, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")

        monkeypatch.setattr("app.cli.options.find_service", full)
        done = bare_tunery("jobs", "list")
        assert done.exit_code == 1
        assert "No space left on device: /data/x" in done.err

    def test_ctrl_c_is_exit_code_130(self, bare_tunery: Tunery, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("app.cli.options.find_service", interrupt)
        assert bare_tunery("jobs", "list").exit_code == 130


def test_a_foreign_directory_is_refused_by_up_in_a_sentence(bare_tunery: Tunery, tmp_path: Path) -> None:
    (tmp_path / "somebody-elses").write_text("")
    done = bare_tunery("up", "--data-dir", tmp_path, "--port", "0")
    assert done.exit_code == 1
    assert "Traceback" not in done.err
    assert os.listdir(tmp_path) == ["somebody-elses"]


def test_doctor_reports_on_the_data_directory_it_is_given(bare_tunery: Tunery, tmp_path: Path) -> None:
    done = bare_tunery("doctor", "--data-dir", tmp_path / "new")
    assert done.exit_code in (0, 1)
    assert str(tmp_path / "new") in done.out
    assert not (tmp_path / "new").exists()


def test_doctor_before_an_upgrade_reads_the_database_of_the_environment(
    bare_tunery: Tunery, database_url: str, tmp_path: Path
) -> None:
    environment = {"DATABASE_URL": database_url, "TUNERY_DATA_DIR": str(tmp_path), "TUNERY_NO_SUCH_SETTING": "1"}
    done = bare_tunery("doctor", "--before-upgrade", env=environment)
    assert done.exit_code in (0, 1)
    assert "TUNERY_NO_SUCH_SETTING" in done.out
    without = bare_tunery("doctor", "--before-upgrade", "--data-dir", tmp_path)
    assert (without.exit_code, "DATABASE_URL is not set" in without.err) == (1, True)


def test_the_command_works_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "app.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
