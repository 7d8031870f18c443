"""A fork server for tests of what the trainer's programs compute: it has imported torch and forks for each program.

`forked("worker.trainer")` is a command that stands for `python -m worker.trainer`; it takes the same arguments, and
saves five seconds of processor time. torch has run no operation in the server, so it has no threads that a fork would
lose. Tests of kills, leases, drains, environments, limits and snapshots start the real programs.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

from tests.processes import dies_with_tests

HERE = Path(__file__).parent


def forked(module: str) -> tuple[str, ...]:
    """The command of a program in `module`, without its arguments."""
    name, _ = _server(os.getpid())
    return sys.executable, "-I", "-S", str(HERE / "client.py"), name, module


@functools.cache
def _server(pid: int) -> tuple[str, subprocess.Popen[bytes]]:
    """The name of the abstract socket of this process's server, which listens, and the server; it ends with `pid`."""
    name = f"tunery-tests-fork-{pid}"
    command = [sys.executable, "-m", "tests.fork_server.server", name]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=HERE.parents[1], preexec_fn=dies_with_tests())
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return name, server
