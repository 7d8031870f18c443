"""A fork server for tests of what the trainer's programs compute: it has imported torch and forks for each program.

`forked("worker.trainer")` is a command that stands for `python -m worker.trainer`; it takes the same arguments, and
saves five seconds of processor time. torch has run no operation in the server, so it has no threads that a fork would
lose. Tests of kills, leases, drains, environments, limits and snapshots start the real programs.

A run of all tests forks the processes of pytest-xdist from it, too, and these use the same server. That one has also
imported the tests: to rewrite the asserts of a fresh clone takes 10 s, which each process took.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from pathlib import Path

from tests.processes import dies_with_tests

HERE = Path(__file__).parent
NAME = "TUNERY_TESTS_FORK_SERVER"  # the variable with the name of the abstract socket of the server that runs


def forked(module: str, with_tests: bool = False) -> tuple[str, ...]:
    """The command of a program in `module`, without its arguments. Starts the server if none runs, `with_tests` one
    that has imported all tests."""
    if NAME not in os.environ:
        os.environ[NAME] = _start(with_tests)
    return sys.executable, "-I", "-S", str(HERE / "client.py"), os.environ[NAME], module


def _start(with_tests: bool) -> str:
    """The name of a new server, which listens; it ends with this process."""
    name = f"tunery-tests-fork-{os.getpid()}"
    command = [sys.executable, "-m", "tests.fork_server.server", name, *(["tests"] if with_tests else [])]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=HERE.parents[1], preexec_fn=dies_with_tests())
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(_stop, server)
    return name


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.communicate()
