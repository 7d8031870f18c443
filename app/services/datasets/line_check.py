"""Whether a file is strict JSON lines, and how many.

    python -m app.services.datasets.line_check PARENT_PID MAX_LINE_BYTES DESCRIPTOR > VERDICT

A small file is checked here, a large one in a process of its own. A gigabyte of short lines takes half a minute, of
long ones a few seconds.
"""

from __future__ import annotations

import json
import os
import sys
from typing import BinaryIO

from app.domain.datasets.jsonl import Finding, read_lines
from app.errors import InvalidDataset, Unavailable
from app.services.datasets.check_process import Check, enter_check_process

CHECKED_HERE_BYTES = 256 << 10  # at most some 10 ms
MAX_FINDINGS = 10

Verdict = tuple[int, list[str]]


def needs_process(purpose: str, size_bytes: int) -> bool:
    """Whether a file's lines are checked in a process of their own."""
    return purpose == "fine-tune" and size_bytes > CHECKED_HERE_BYTES


def count_lines(file: BinaryIO, size_bytes: int, max_line_bytes: int, check: Check) -> int:
    """Return the number of examples in `file`, which is read from its start.

    Raises InvalidDataset, Unavailable, CheckCancelledError.
    """
    if size_bytes <= CHECKED_HERE_BYTES:
        count, findings = _check_here(file, max_line_bytes)
    else:
        count, findings = _check_in_process(file, max_line_bytes, check)
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


def _check_in_process(file: BinaryIO, max_line_bytes: int, check: Check) -> Verdict:
    try:
        count, findings = json.loads(check.run(__name__, [str(max_line_bytes)], [file]))
    except ChildProcessError as error:
        raise Unavailable("The check of the file's lines was interrupted; send the request again.") from error
    return count, findings


def _not_jsonl(reason: str) -> InvalidDataset:
    text = f"Expected file to have JSONL format, where every line is a valid JSON dictionary. {reason}."
    return InvalidDataset(text, "file")


def main(arguments: list[str]) -> int:
    parent_pid, max_line_bytes, descriptor = map(int, arguments)
    enter_check_process(parent_pid)
    with os.fdopen(descriptor, "rb") as file:
        print(json.dumps(_check_here(file, max_line_bytes)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
