"""A command in a terminal: its standard streams are a pseudo-terminal, as a person has."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tests.deadline import DEADLINE_SECONDS, until
from tests.up import ROOT

COLOR = re.compile(r"\x1b\[[0-9;]*m")
BLOCK_BYTES = 1 << 16


class Shown(NamedTuple):
    exit_code: int
    text: str


def in_terminal(
    arguments: Iterable[str], answers: Iterable[tuple[str, str]] = (), environment: Mapping[str, str] | None = None
) -> Shown:
    """Run `tunery` and type each answer after its question has appeared. Returns what the terminal has shown."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(follower)
    os.set_blocking(leader, False)
    shown = ""

    def read() -> bool:
        """Whether the terminal is closed."""
        nonlocal shown
        try:
            while block := os.read(leader, BLOCK_BYTES):
                shown += block.decode()
        except BlockingIOError:
            return False
        except OSError:  # the last program has closed it
            return True
        return True

    try:
        start = 0
        for question, answer in answers:
            until(lambda question=question, start=start: read() or question in shown[start:], question)
            assert question in shown[start:], shown
            start = len(shown)
            os.write(leader, f"{answer}\n".encode())
        until(read, "the command has ended")
        return Shown(process.wait(timeout=DEADLINE_SECONDS), shown)
    finally:
        process.kill()
        process.wait()
        os.close(leader)
