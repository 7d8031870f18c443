"""What a data set is like once it is tokenized: exact, by the rules of validation and of the trainer.

    python -m app.services.counting MODEL_DIRECTORY CONTEXT_LENGTH METHOD MAX_LINE_BYTES < FILE > COUNTS

A small file is counted here. A large one would keep other requests waiting for the interpreter: a child does it,
with a deadline; a megabyte of chat takes about 1.3 s. The last few results are remembered, as who plans turns knobs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from array import array
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

from app.domain.dataset_report import Report, examine
from app.domain.jsonl import Finding
from app.domain.layout import Lengths
from app.domain.render import Renderer
from app.domain.spec import Method
from app.errors import BadRequest, Unavailable

COUNTED_HERE_BYTES = 256 << 10
DEADLINE_SECONDS = 300.0
CHILDREN = threading.BoundedSemaphore(2)
REMEMBERED = 16

Key = tuple[str, str, int, Method]


class Counter:
    """Counts, and remembers by (hash of the model, hash of the file, context length, method)."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._known: OrderedDict[Key, Report] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, key: Key, model_directory: Path, file: BinaryIO, size_bytes: int, param: str) -> Report:
        """Raises BadRequest for a file that takes longer than a request may, Unavailable without a tokenizer."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        if size_bytes <= COUNTED_HERE_BYTES:
            report = _count_here(model_directory, file, key[2], key[3], self._max_line_bytes)
        else:
            report = _count_aside(model_directory, file, key[2], key[3], self._max_line_bytes, param)
        with self._lock:
            self._known[key] = report
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return report


def _count_here(
    model_directory: Path, file: BinaryIO, context_length: int, method: Method, max_line_bytes: int
) -> Report:
    try:
        renderer = Renderer.from_directory(model_directory)
    except Exception as error:  # tokenizers raises a bare Exception
        raise _no_tokenizer() from error
    return examine(file, renderer, context_length, max_line_bytes, lambda: None, method)


def _count_aside(
    model_directory: Path, file: BinaryIO, context_length: int, method: Method, max_line_bytes: int, param: str
) -> Report:
    arguments = [str(model_directory), str(context_length), method, str(max_line_bytes)]
    command = [sys.executable, "-m", __name__, *arguments]
    with CHILDREN, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        deadline = threading.Timer(DEADLINE_SECONDS, child.kill)
        deadline.start()
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            threading.Thread(target=_feed, args=(file, child.stdin), daemon=True).start()
            counted = child.stdout.read()
            code = child.wait()
        finally:
            is_late = not deadline.is_alive()
            deadline.cancel()
            child.kill()
    if is_late:
        text = f"{param}: counting its tokens takes longer than {DEADLINE_SECONDS:.0f} s; create the job instead"
        raise BadRequest(f"{text}, whose validation counts them", param, "file_too_large_to_plan")
    if code != 0:
        raise _no_tokenizer()
    return _from_json(counted)


def _feed(file: BinaryIO, pipe: Any) -> None:
    try:
        with pipe:
            shutil.copyfileobj(file, pipe)
    except (OSError, ValueError):  # it has seen enough, or it was killed
        return


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
    directory, context_length, max_line_bytes = Path(arguments[0]), int(arguments[1]), int(arguments[3])
    method: Method = "dpo" if arguments[2] == "dpo" else "supervised"
    report = _count_here(directory, sys.stdin.buffer, context_length, method, max_line_bytes)
    sys.stdout.buffer.write(_to_json(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
