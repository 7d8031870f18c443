"""Looking at processes, and being somebody else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from app.cli.local_stack.machine import Account, postgres_account
from app.cli.local_stack.servers import LocalServer
from app.cli.local_stack.services import child_environment

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to lend PostgreSQL another account")
REPOSITORY = Path(__file__).resolve().parents[3]


def processes_naming(path: Path) -> dict[int, str]:
    """Everybody who works for this directory: the servers name it in their command line, the others in their mark."""
    found = {}
    for process in psutil.process_iter():
        try:
            process_text = " ".join(process.cmdline()) + " ".join(process.environ().values())
        except psutil.Error:
            continue
        if str(path) in process_text and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
            found[process.pid] = process_text[:200]
    return found


def started(server: LocalServer) -> str:
    """Start a server; its URL."""
    server.start()
    return server.url


def service_account() -> Account:
    found = postgres_account()
    assert found is not None
    return found


def look_of(path: Path) -> dict[Path, tuple[int, int, int]]:
    """Mode and owner of everything that exists above a path."""
    found = {one: one.stat() for one in path.parents if one.exists()}
    return {one: (stat.st_mode, stat.st_uid, stat.st_gid) for one, stat in found.items()}


def start_python(code: str, *arguments: object, become: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [*become, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=program_environment(), stdout=subprocess.PIPE, text=True)


def plain_user() -> list[str]:
    """A command prefix that makes the rest run as a plain user; empty where we are one.

    The user may read everything, as the interpreter of a test run by root often lies in root's home, but owns nothing.
    """
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not installed, so root can't run this as a plain user")
    who = service_account()
    reading = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    return ["setpriv", "--reuid", str(who.uid), "--regid", str(who.gid), "--clear-groups", *reading]


def give_away(directory: Path, become: Sequence[str]) -> None:
    if become:
        who = service_account()
        for path in (directory, *directory.rglob("*")):
            os.chown(path, who.uid, who.gid)


def program_environment() -> dict[str, str]:
    return {name: value for name, value in child_environment(Path("/"), {}).items() if name != "TUNERY_DATA_DIR"}
