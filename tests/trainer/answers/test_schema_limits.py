"""Limits of the compilation of a schema, in a process that they may end."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.fork_server import forked
from tests.trainer.answers.test_response_format import renderer

PROGRAM = "tests.trainer.answers.limited_schema"


@pytest.mark.parametrize(
    ("patterns", "seconds", "size_bytes", "exit_code"),
    [
        (20, 0.2, 1 << 30, -signal.SIGPROF),
        (20, 60.0, 8 << 20, -signal.SIGABRT),
        (4, 5.0, 1 << 30, 0),
    ],
)
def test_a_schema_that_takes_too_much_ends_the_process(
    tmp_path: Path, patterns: int, seconds: float, size_bytes: int, exit_code: int
) -> None:
    renderer().tokenizer.save(str(tmp_path / "tokenizer.json"))
    arguments = (tmp_path / "tokenizer.json", patterns, seconds, size_bytes)
    ended = subprocess.run([*forked(PROGRAM), *map(str, arguments)], capture_output=True, timeout=60)
    assert ended.returncode == exit_code, ended.stderr.decode()
