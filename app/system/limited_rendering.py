"""Chat templates, run in a process with limits: of memory for the process, of time for each text.

A template is a program of whoever made the base model. Its sandbox keeps it from the machine, not from computing: three
nested loops, a format of a gigabyte, a string that is doubled 60 times.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from app.domain.datasets.chat_template import ChatTemplate, UnusableTemplate
from app.domain.datasets.jsonl import Finding
from app.domain.datasets.render import RenderedLine, Renderer
from app.domain.jobs.spec import DataParameters
from app.system.limited_process import LimitedProcess, ProcessEnded, memory_bytes
from app.system.tokenizer_files import load_renderer

TEXT_SECONDS = 2.0  # of computing for one text; a conversation of 1,000 messages takes 0.02 s
TEXT_MEMORY_BYTES = 512 << 20  # of a process that has no tokenizer
# Of a process that reads a dataset, for texts that the tokenizer gets in one call. With more the rendering, in one
# thread, takes most of the time.
TOKENIZER_THREADS = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(min(4, len(os.sched_getaffinity(0))))}
TOO_COSTLY = f"the model's chat template takes more than {TEXT_SECONDS:.0f} s of computing, or too much memory"


class UnreadableTokenizer(ValueError):
    """The files of the tokenizer cannot be used; the message says why."""


def with_renderer(directory: Path, now: datetime | None, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return `function(renderer, *arguments)`; to be called in a LimitedProcess. Raises UnreadableTokenizer."""
    os.environ |= TOKENIZER_THREADS
    try:
        renderer: Renderer = load_renderer(directory, now)
    except (OSError, ValueError) as error:
        raise UnreadableTokenizer(str(error)) from error
    if template := renderer.template:
        renderer.template = _TimedTemplate(template.source, template.special_tokens, template.now)
    return function(renderer, *arguments)


def read_in_process(
    directory: Path,
    function: Callable[..., Any],
    *arguments: Any,
    files: Sequence[BinaryIO],
    max_line_bytes: int,
    check: Callable[[], None],
    niceness: int = 0,
) -> Any:
    """Return `function(renderer, *arguments, *files)`, with the renderer of a base model, computed in a LimitedProcess.

    `check` is called meanwhile, and ends it by raising. Raises UnreadableTokenizer, UnusableTemplate, OSError.
    """
    (result,) = stream_in_process(
        directory,
        None,
        function,
        *arguments,
        files=files,
        max_line_bytes=max_line_bytes,
        check=check,
        niceness=niceness,
    )
    return result


def stream_in_process(
    directory: Path,
    now: datetime | None,
    function: Callable[..., Any],
    *arguments: Any,
    files: Sequence[BinaryIO],
    max_line_bytes: int,
    check: Callable[[], None],
    niceness: int = 0,
) -> Iterator[Any]:
    """Yield the items of a generator, as `read_in_process` returns the result of a function."""
    with LimitedProcess(files, memory_bytes=memory_bytes(max_line_bytes), niceness=niceness) as process:
        try:
            yield from process.stream(with_renderer, directory, now, function, *arguments, check=check)
        except ProcessEnded as error:
            raise UnusableTemplate(TOO_COSTLY) from error


class LimitedRenderer(Renderer):
    """A renderer for processes that hold more than datasets: its template runs in a LimitedProcess."""

    directory: Path

    def lines(
        self, max_line_bytes: int, parameters: DataParameters, file: BinaryIO, check: Callable[[], None] = lambda: None
    ) -> Iterator[RenderedLine | Finding]:
        for line in stream_in_process(
            self.directory,
            self.now,
            Renderer.lines,
            max_line_bytes,
            parameters,
            files=[file],
            max_line_bytes=max_line_bytes,
            check=check,
        ):
            check()
            yield line


def limited_renderer(directory: Path, now: datetime | None = None) -> LimitedRenderer:
    """The renderer of a base model, whose template runs in another process. Raises OSError, ValueError."""
    renderer = load_renderer(directory, now, LimitedRenderer)
    renderer.directory = directory
    if template := renderer.template:
        renderer.template = _LimitedTemplate(template.source, template.special_tokens, template.now)
    return renderer


class _LimitedTemplate(ChatTemplate):
    """Rendered in a process that starts with the first text, and again after a text that has ended it."""

    _process: LimitedProcess | None = None

    def text(self, *arguments: Any) -> str:
        self._process = process = self._process or LimitedProcess(memory_bytes=TEXT_MEMORY_BYTES)
        try:
            return str(process.call(_text, self.source, tuple(self.special_tokens.items()), self.now, *arguments))
        except ProcessEnded as error:
            process.close()
            self._process = None
            raise UnusableTemplate(TOO_COSTLY) from error


class _TimedTemplate(ChatTemplate):
    """Ends its process after TEXT_SECONDS, by a signal, which also ends code written in C."""

    def text(self, *arguments: Any) -> str:
        with _time_limit():
            return super().text(*arguments)

    @cached_property
    def variables(self) -> frozenset[str]:
        with _time_limit():
            return super().variables


@contextmanager
def _time_limit() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, TEXT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _text(source: str, special_tokens: tuple[tuple[str, str], ...], now: datetime, *arguments: Any) -> str:
    return _template(source, special_tokens, now).text(*arguments)


@lru_cache(maxsize=1)
def _template(source: str, special_tokens: tuple[tuple[str, str], ...], now: datetime) -> ChatTemplate:
    return _TimedTemplate(source, dict(special_tokens), now)
