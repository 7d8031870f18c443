"""The log files that a process writes itself: bounded, complete at their end, with what was printed past `logging`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LINES = 3_000
WRITE = f"""
import logging, os, sys
from pathlib import Path
import app.log

app.log.MAX_FILE_BYTES, app.log.BACKUP_FILES = 50_000, 3
app.log.configure_logging(json=True, file=Path(sys.argv[1]))
log = app.log.get_logger("test")
for number in range({LINES}):
    log.info("an event", number=number)
    if number % 100 == 0:
        print("printed", number, flush=True)
        os.write(2, b"native %d\\n" % number)
logging.getLogger("alembic.runtime.migration").info("Context impl PostgresqlImpl.")
logging.getLogger("uvicorn.access").info("GET /")
logging.getLogger("uvicorn.error").info("Started server process")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of a small log into which many lines were written, the newest first."""
    directory = tmp_path_factory.mktemp("log")
    path = directory / "api.log"
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", WRITE, path], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return sorted(directory.iterdir(), key=lambda file: (len(file.name), file.name))


def test_files_do_not_grow_without_bound_and_the_newest_lines_are_all_there(files: list[Path]) -> None:
    assert [file.name for file in files] == ["api.log", "api.log.1", "api.log.2", "api.log.3"]
    assert all(file.stat().st_size < 51_000 for file in files)
    text = "".join(file.read_text() for file in reversed(files))
    numbers = [json.loads(line)["number"] for line in text.splitlines() if "an event" in line]
    assert numbers == list(range(numbers[0], LINES))
    assert len(numbers) > 1_000


def test_what_is_printed_follows_into_the_newest_file(files: list[Path]) -> None:
    text = "".join(file.read_text() for file in reversed(files))
    printed, native = (re.findall(rf"^{how} (\d+)$", text, re.M) for how in ("printed", "native"))
    assert printed[-1] == native[-1] == str(LINES - 100)
    assert text.index(f"native {LINES - 100}\n") > text.index(f'"number": {LINES - 100},')


def test_libraries_write_in_the_same_format_or_not_at_all(files: list[Path]) -> None:
    newest = files[0].read_text().splitlines()
    assert json.loads(newest[-1])["event"] == "Started server process"
    assert not [line for line in newest if "Context impl" in line or "GET /" in line]
