"""Exact token counts of a dataset, by the rules of validation and of the trainer.

A process with a deadline counts them (app.services.datasets.check_process); a megabyte of chat takes about 1.3 s. The
latest results are cached, because clients repeat a plan with other parameters.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from app.domain.datasets.report import DatasetReport, build_report
from app.domain.jobs.spec import DataParameters
from app.errors import BadRequest
from app.services.datasets.check_process import Check

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

    def count(self, key: Key, model_directory: Path, file: BinaryIO, param: str, check: Check | None) -> DatasetReport:
        """Return the report on `file`; without a `check` only from the cache.

        Raises NotCountedError without a `check`, BadRequest for a file that takes longer than a request may, and as
        Check.run_with_renderer.
        """
        with self._lock:
            if key in self._cached_reports:
                self._cached_reports.move_to_end(key)
                return self._cached_reports[key]
        if check is None:
            raise NotCountedError
        report = self._count(key, model_directory, file, param, check)
        with self._lock:
            self._cached_reports[key] = report
            while len(self._cached_reports) > MAX_CACHED_REPORTS:
                self._cached_reports.popitem(last=False)
        return report

    def _count(self, key: Key, model_directory: Path, file: BinaryIO, param: str, check: Check) -> DatasetReport:
        _, _, parameters = key
        try:
            return check.run_with_renderer(
                model_directory,
                build_report,
                parameters,
                self._max_line_bytes,
                files=[file],
                deadline_seconds=DEADLINE_SECONDS,
                max_line_bytes=self._max_line_bytes,
            )
        except TimeoutError as error:
            text = f"{param}: counting its tokens takes longer than {DEADLINE_SECONDS:.0f} s; create the job instead"
            raise BadRequest(f"{text}, whose validation counts them", param, "file_too_large_to_plan") from error
