"""What a data set is like once it is tokenized: exact, by the rules of validation and of the trainer.

    python -m app.services.datasets.token_counter PARENT_PID MODEL_DIRECTORY CONTEXT_LENGTH METHOD
        MAX_LINE_BYTES DESCRIPTOR > COUNTS

A small file is counted here, a large one in a process of its own, with a deadline; a megabyte of chat takes about
1.3 s. The last few results are remembered, as who plans turns knobs.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from array import array
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from app.domain.datasets.jsonl import Finding
from app.domain.datasets.report import Report, examine
from app.domain.jobs.spec import Method
from app.domain.planning.packing import Lengths
from app.errors import BadRequest, Unavailable
from app.services.datasets.check_process import Check, enter_check_process, takes_long
from app.system.tokenizer_files import load_renderer

DEADLINE_SECONDS = 300.0
REMEMBERED = 16

Key = tuple[str, str, int, Method]


class NotCountedError(Exception):
    """Nothing is remembered of the file."""


class Counter:
    """Counts, and remembers by (hash of the model, hash of the file, context length, method)."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._known: OrderedDict[Key, Report] = OrderedDict()
        self._lock = threading.Lock()

    def count(
        self, key: Key, model_directory: Path, file: BinaryIO, size_bytes: int, param: str, check: Check | None
    ) -> Report:
        """Return the counts of `file`; without a `check` only those that are remembered.

        Raises NotCountedError without a `check`, BadRequest for a file that takes longer than a request may,
        Unavailable without a tokenizer, CheckCancelledError.
        """
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        if check is None:
            raise NotCountedError
        if takes_long(model_directory, size_bytes):
            report = _count_in_process(model_directory, file, key[2], key[3], self._max_line_bytes, param, check)
        else:
            report = _count_here(model_directory, file, key[2], key[3], self._max_line_bytes, check)
        with self._lock:
            self._known[key] = report
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return report


def _count_here(
    model_directory: Path, file: BinaryIO, context_length: int, method: Method, max_line_bytes: int, check: Check
) -> Report:
    try:
        renderer = load_renderer(model_directory)
    except Exception as error:  # tokenizers raises a bare Exception
        raise _no_tokenizer() from error
    return examine(file, renderer, context_length, max_line_bytes, check.raise_if_cancelled, method)


def _count_in_process(
    model_directory: Path,
    file: BinaryIO,
    context_length: int,
    method: Method,
    max_line_bytes: int,
    param: str,
    check: Check,
) -> Report:
    arguments = [str(model_directory), str(context_length), method, str(max_line_bytes)]
    try:
        return _from_json(check.run(__name__, arguments, [file], DEADLINE_SECONDS))
    except TimeoutError as error:
        text = f"{param}: counting its tokens takes longer than {DEADLINE_SECONDS:.0f} s; create the job instead"
        raise BadRequest(f"{text}, whose validation counts them", param, "file_too_large_to_plan") from error
    except ChildProcessError as error:
        raise _no_tokenizer() from error


def _no_tokenizer() -> Unavailable:
    return Unavailable("The tokenizer of this base model cannot be read by the API; ask its operator.", "model")


def _to_json(report: Report) -> bytes:
    plain = report.counts() | report.remarks()
    plain |= {
        "masked_lines": report.masked.first,
        "masked": report.masked.count,
        "findings": [vars(finding) for finding in report.findings],
        "finding_count": report.finding_count,
        "documents": report.lengths.tokens.tolist(),
        "starts": report.lengths.starts.tolist(),
        "squares": report.lengths.squares,
    }
    return json.dumps(plain).encode()


def _from_json(counted: bytes) -> Report:
    plain = json.loads(counted)
    report = Report(plain["examples"], plain["tokens"], plain["labelled_tokens"])
    for name in ("cut", "empty", "masked"):
        lines = getattr(report, name)
        lines.count, lines.first = plain[name], plain[f"{name}_lines"]
    report.findings = [Finding(**finding) for finding in plain["findings"]]
    report.finding_count = plain["finding_count"]
    report.lengths = Lengths(array("i", plain["documents"]), array("q", plain["starts"]), plain["squares"])
    return report


def main(arguments: list[str]) -> int:
    enter_check_process(int(arguments[0]))
    directory, context_length, max_line_bytes = Path(arguments[1]), int(arguments[2]), int(arguments[4])
    method: Method = "dpo" if arguments[3] == "dpo" else "supervised"
    with os.fdopen(int(arguments[5]), "rb") as file:
        report = _count_here(directory, file, context_length, method, max_line_bytes, Check())
    sys.stdout.buffer.write(_to_json(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
