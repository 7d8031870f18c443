"""A check: a process that reads datasets for one request. It has a deadline and ends when the client disconnects.

Reading a large dataset holds the interpreter's lock, and a base model's chat template has no limits of its own, so a
process with low priority and limits (app.system.limited_process) does both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from app.domain.datasets.chat_template import UnusableTemplate
from app.errors import BadRequest, Unavailable
from app.system.limited_process import MEMORY_BYTES, LimitedProcess
from app.system.limited_rendering import UnreadableTokenizer, read_in_process

Result = TypeVar("Result")

MAX_SHORT_BYTES = 256 << 10  # of datasets; they take 0.3 s
MAX_SHORT_TOKENIZER_BYTES = 4 << 20  # they take 0.15 s
NICENESS = 10


def takes_long(model_directory: Path, size_bytes: int) -> bool:
    """Whether reading a dataset with a model's tokenizer takes longer than other requests should wait for it."""
    tokenizer = model_directory / "tokenizer.json"
    return size_bytes > MAX_SHORT_BYTES or (tokenizer.exists() and tokenizer.stat().st_size > MAX_SHORT_TOKENIZER_BYTES)


class CheckCancelledError(Exception):
    """The client has disconnected; the result is not needed any more."""


class CheckProcess:
    """The reading of datasets for one request. `cancel` may be called from any thread, at any time."""

    def __init__(self) -> None:
        self._is_cancelled = threading.Event()

    def cancel(self) -> None:
        """End the process, if one is running, and start no other."""
        self._is_cancelled.set()

    def raise_if_cancelled(self) -> None:
        if self._is_cancelled.is_set():
            raise CheckCancelledError

    def run(
        self,
        function: Callable[..., Result],
        *arguments: Any,
        files: Sequence[BinaryIO],
        deadline_seconds: float | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Result:
        """Return `function(*arguments, *files)`, computed in a process, where each file is read from its start.

        Raises CheckCancelledError, TimeoutError after `deadline_seconds`, and as LimitedProcess.
        """
        (result,) = self.stream(
            function, *arguments, files=files, deadline_seconds=deadline_seconds, memory_bytes=memory_bytes
        )
        return cast("Result", result)

    def stream(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        files: Sequence[BinaryIO],
        deadline_seconds: float | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Iterator[Any]:
        """As `run`, for the items of a generator; the deadline is that of all."""
        check = self._check(deadline_seconds)
        check()
        with LimitedProcess(files, memory_bytes=memory_bytes, niceness=NICENESS) as process:
            for item in process.stream(function, *arguments, check=check):
                check()
                yield item

    def run_with_renderer(
        self,
        model_directory: Path,
        function: Callable[..., Result],
        *arguments: Any,
        files: Sequence[BinaryIO],
        max_line_bytes: int,
        deadline_seconds: float,
    ) -> Result:
        """Return `function(renderer, *arguments, *files)` with the renderer of a base model.

        Raises Unavailable without a tokenizer, BadRequest if the chat template cannot be used, and as `run`.
        """
        check = self._check(deadline_seconds)
        check()
        try:
            result: Result = read_in_process(
                model_directory,
                function,
                *arguments,
                files=files,
                max_line_bytes=max_line_bytes,
                check=check,
                niceness=NICENESS,
            )
        except UnreadableTokenizer as error:
            text = "The tokenizer of this base model cannot be read by the API; ask its operator."
            raise Unavailable(text, "model") from error
        except UnusableTemplate as error:
            raise BadRequest(
                f"model: no file can be read for it, because {error}; ask its operator", "model"
            ) from error
        self.raise_if_cancelled()
        return result

    def _check(self, deadline_seconds: float | None) -> Callable[[], None]:
        """A function that raises CheckCancelledError after a cancel, and TimeoutError after the deadline."""
        deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds

        def check() -> None:
            self.raise_if_cancelled()
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"not within {deadline_seconds} s")

        return check
