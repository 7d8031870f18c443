"""A forked program ends with its client and gets its signals."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.deadline import until
from tests.fork_server import forked
from tests.processes import is_alive

ROOT = Path(__file__).parents[2]


def start(command: Sequence[str], workdir: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, str(workdir)], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_a_killed_client_ends_its_program(tmp_path: Path) -> None:
    program = start(forked("tests.fork_server.sleeper"), tmp_path)
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    program.kill()
    program.communicate()
    until(lambda: not is_alive(pid), "the program has ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_and_exit_codes_are_passed_on(tmp_path: Path, number: signal.Signals) -> None:
    program = start(forked("tests.fork_server.sleeper"), tmp_path)
    assert program.stdout is not None
    program.stdout.readline()
    program.send_signal(number)
    program.communicate()
    assert program.returncode == 40 + number
