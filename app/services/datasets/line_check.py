"""Whether a file is strict JSON lines, and how many lines it has.

A small file is checked in the API's process, a large one in a child process. A gigabyte of short lines takes half a
minute, one of long lines a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from app.domain.datasets.jsonl import OTHER_FORMAT, Finding, read_lines
from app.errors import BadRequest, InvalidDataset, Unavailable
from app.services.datasets.check_process import Check
from app.system.limited_process import ProcessEnded, memory_bytes

MAX_IN_PROCESS_BYTES = 256 << 10  # at most some 10 ms
MAX_FINDINGS = 10
CHECKED_PURPOSES = ("fine-tune", "evals")


def is_long(purpose: str, size_bytes: int) -> bool:
    """Whether a file's lines are checked in a process of their own."""
    return purpose == "fine-tune" and size_bytes > MAX_IN_PROCESS_BYTES


def check_content(
    purpose: str, open_file: Callable[[], BinaryIO], size_bytes: int, max_line_bytes: int, check: Check
) -> int | None:
    """Check a new file with one of CHECKED_PURPOSES; return the number of lines of one for fine-tuning.

    Raises what `count_lines` raises, and BadRequest for an evaluation file of another format than JSON lines.
    """
    if purpose not in CHECKED_PURPOSES:
        return None
    with open_file() as file:
        if purpose == "fine-tune":
            return count_lines(file, size_bytes, max_line_bytes, check)
        first = next(read_lines(file, max_line_bytes), None)
    if isinstance(first, Finding) and first.code == OTHER_FORMAT:
        raise BadRequest(f"The file is {first.message}.", "file")
    return None


def count_lines(file: BinaryIO, size_bytes: int, max_line_bytes: int, check: Check) -> int:
    """Return the number of examples in `file`, which is read from its start.

    Raises InvalidDataset, Unavailable, CheckCancelledError.
    """
    if size_bytes <= MAX_IN_PROCESS_BYTES:
        count, findings = check_lines(max_line_bytes, file)
    else:
        try:
            count, findings = check.run(
                check_lines, max_line_bytes, files=[file], memory_bytes=memory_bytes(max_line_bytes)
            )
        except ProcessEnded as error:
            raise Unavailable("The check of the file's lines was interrupted; send the request again.") from error
    if findings and findings[0].code == OTHER_FORMAT:
        raise InvalidDataset(f"The file is {findings[0].message}.", "file")
    if findings:
        raise _not_jsonl(". ".join(map(str, findings)))
    if count == 0:
        raise _not_jsonl("The file is empty")
    return count


def check_lines(max_line_bytes: int, file: BinaryIO) -> tuple[int, list[Finding]]:
    """Return the number of lines and the first MAX_FINDINGS findings; reading stops at the last of these."""
    findings: list[Finding] = []
    count = 0
    for line in read_lines(file, max_line_bytes):
        if isinstance(line, Finding):
            findings.append(line)
        count += 1
        if len(findings) == MAX_FINDINGS:
            break
    return count, findings


def _not_jsonl(reason: str) -> InvalidDataset:
    text = f"Expected file to have JSONL format, where every line is a valid JSON dictionary. {reason}."
    return InvalidDataset(text, "file")
