"""Exact token counts of a dataset, by the rules of validation and of the trainer.

A small file is counted in the API's process, a large one in a child process with a deadline; a megabyte of chat takes
about 1.3 s. The latest results are cached, because clients repeat a plan with other parameters.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from app.domain.datasets.report import DatasetReport, build_report
from app.domain.jobs.spec import DataParameters
from app.errors import BadRequest, Unavailable
from app.services.datasets.check_process import Check, takes_long
from app.system.tokenizer_files import load_renderer

DEADLINE_SECONDS = 300.0
MAX_CACHED_REPORTS = 16

Key = tuple[str, str, DataParameters]


class NotCountedError(Exception):
    """No report on the file is cached."""


class TokenCounter:
    """Counts tokens; caches reports by (hash of the model, hash of the file, data parameters)."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._cached_reports: OrderedDict[Key, DatasetReport] = OrderedDict()
        self._lock = threading.Lock()

    def count(
        self, key: Key, model_directory: Path, file: BinaryIO, size_bytes: int, param: str, check: Check | None
    ) -> DatasetReport:
        """Return the report on `file`; without a `check` only from the cache.

        Raises NotCountedError without a `check`, BadRequest for a file that takes longer than a request may,
        Unavailable without a tokenizer, CheckCancelledError.
        """
        with self._lock:
            if key in self._cached_reports:
                self._cached_reports.move_to_end(key)
                return self._cached_reports[key]
        if check is None:
            raise NotCountedError
        if takes_long(model_directory, size_bytes):
            report = self._count_in_child(key, model_directory, file, param, check)
        else:
            report = count_tokens(model_directory, key, self._max_line_bytes, file, check.raise_if_cancelled)
        with self._lock:
            self._cached_reports[key] = report
            while len(self._cached_reports) > MAX_CACHED_REPORTS:
                self._cached_reports.popitem(last=False)
        return report

    def _count_in_child(
        self, key: Key, model_directory: Path, file: BinaryIO, param: str, check: Check
    ) -> DatasetReport:
        try:
            return check.run(
                count_tokens,
                model_directory,
                key,
                self._max_line_bytes,
                files=[file],
                deadline_seconds=DEADLINE_SECONDS,
            )
        except TimeoutError as error:
            text = f"{param}: counting its tokens takes longer than {DEADLINE_SECONDS:.0f} s; create the job instead"
            raise BadRequest(f"{text}, whose validation counts them", param, "file_too_large_to_plan") from error
        except ChildProcessError as error:
            raise _no_tokenizer() from error


def count_tokens(
    model_directory: Path,
    key: Key,
    max_line_bytes: int,
    file: BinaryIO,
    between_lines: Callable[[], None] = lambda: None,
) -> DatasetReport:
    try:
        renderer = load_renderer(model_directory)
    except Exception as error:  # tokenizers raises a bare Exception
        raise _no_tokenizer() from error
    _, _, parameters = key
    return build_report(file, renderer, parameters, max_line_bytes, between_lines)


def _no_tokenizer() -> Unavailable:
    return Unavailable("The tokenizer of this base model cannot be read by the API; ask its operator.", "model")
