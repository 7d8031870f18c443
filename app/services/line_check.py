"""Whether a file is strict JSON lines, and how many.

    python -m app.services.line_check MAX_LINE_BYTES < FILE > VERDICT

A small file is checked here. A large one would keep every other request waiting for the interpreter: a child does it,
and gives way to those who answer requests. A gigabyte of short lines takes half a minute, of long ones a few seconds.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import IO, BinaryIO

from app.domain.jsonl import Finding, read_lines
from app.errors import InvalidDataset, Unavailable

CHECKED_HERE_BYTES = 256 << 10  # at most some 10 ms
MAX_FINDINGS = 10
NICENESS = 10
PR_SET_PDEATHSIG = 1  # linux/prctl.h

Verdict = tuple[int, list[str]]


def count_lines(file: BinaryIO, size_bytes: int, max_line_bytes: int) -> int:
    """The number of examples in `file`, which is read from its start. Raises InvalidDataset, Unavailable."""
    check = _check_here if size_bytes <= CHECKED_HERE_BYTES else _check_aside
    count, findings = check(file, max_line_bytes)
    if findings:
        raise _not_jsonl(". ".join(findings))
    if count == 0:
        raise _not_jsonl("The file is empty")
    return count


def _check_here(file: BinaryIO, max_line_bytes: int) -> Verdict:
    """At most ten findings: nobody mends more at once."""
    findings: list[str] = []
    count = 0
    for line in read_lines(file, max_line_bytes):
        if isinstance(line, Finding):
            findings.append(str(line))
        count += 1
        if len(findings) == MAX_FINDINGS:
            break
    return count, findings


def _check_aside(file: BinaryIO, max_line_bytes: int) -> Verdict:
    command = [sys.executable, "-m", __name__, str(max_line_bytes)]
    source = _descriptor(file)
    with subprocess.Popen(command, stdin=source or subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            if child.stdin is not None:
                threading.Thread(target=_feed, args=(file, child.stdin), daemon=True).start()
            assert child.stdout is not None
            verdict = child.stdout.read()
            code = child.wait()
        finally:
            child.kill()
    if code != 0:
        raise Unavailable("The check of the file's lines was interrupted; send the request again.")
    count, findings = json.loads(verdict)
    return count, findings


def _descriptor(file: BinaryIO) -> int | None:
    """What the child may read by itself, without this process in between."""
    try:
        return file.fileno()
    except (OSError, io.UnsupportedOperation):
        return None


def _feed(file: BinaryIO, pipe: IO[bytes]) -> None:
    try:
        with pipe:
            shutil.copyfileobj(file, pipe, 1 << 20)
    except (OSError, ValueError):  # it has seen enough, or it was killed
        return


def _not_jsonl(reason: str) -> InvalidDataset:
    text = f"Expected file to have JSONL format, where every line is a valid JSON dictionary. {reason}."
    return InvalidDataset(text, "file")


def main(arguments: list[str]) -> int:
    if sys.platform == "linux":  # of an API that was killed nobody waits for the verdict, which may take half a minute
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(NICENESS)
    sys.stdout.write(json.dumps(_check_here(sys.stdin.buffer, int(arguments[0]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
