"""A process that reads a data set for one request: started, given a deadline, and ended as soon as the client leaves.

What takes long would keep every other request waiting for the interpreter, so a child does it, with low priority. It
ends with this process, too, however that ends.
"""

from __future__ import annotations

import ctypes
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

READ_HERE_BYTES = 256 << 10  # of data sets, which take 0.3 s
TOKENIZER_HERE_BYTES = 4 << 20  # which take 0.15 s, and are kept
NICENESS = 10
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def takes_long(model_directory: Path, size_bytes: int) -> bool:
    """Whether reading a data set with a model's tokenizer would keep every other request waiting for the interpreter.

    A large tokenizer does so by itself: one of 33 MB is read in more than a second, in which no other thread runs.
    """
    tokenizer = model_directory / "tokenizer.json"
    return size_bytes > READ_HERE_BYTES or (tokenizer.exists() and tokenizer.stat().st_size > TOKENIZER_HERE_BYTES)


class CheckCancelledError(Exception):
    """The client has left, so nobody waits for the result."""


class Check:
    """The reading of data sets for one request. `cancel` may be called from any thread, at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """End the child, if one is running, and let none start any more."""
        with self._lock:
            self._is_cancelled = True
            if self._child is not None:
                self._child.kill()

    def raise_if_cancelled(self) -> None:
        if self._is_cancelled:
            raise CheckCancelledError

    def run(
        self, module: str, arguments: Sequence[str], files: Sequence[BinaryIO], deadline_seconds: float | None = None
    ) -> bytes:
        """Run `python -m module PARENT_PID ARGUMENTS DESCRIPTOR_OF_EACH_FILE` and return what it prints.

        Each file is read from its start. Raises CheckCancelledError; TimeoutError after `deadline_seconds`;
        ChildProcessError when the child fails or is killed by somebody else.
        """
        with ExitStack() as opened:
            descriptors = [opened.enter_context(_descriptor(file)) for file in files]
            command = [sys.executable, "-m", module, str(os.getpid()), *arguments, *map(str, descriptors)]
            with self._start(command, descriptors) as child:
                try:
                    printed, _ = child.communicate(timeout=deadline_seconds)
                except subprocess.TimeoutExpired as error:
                    raise TimeoutError(f"not within {deadline_seconds} s") from error
                finally:
                    child.kill()
        self.raise_if_cancelled()
        if child.returncode != 0:
            raise ChildProcessError(f"{module} ended with {child.returncode}")
        return printed

    def _start(self, command: list[str], descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
        with self._lock:
            self.raise_if_cancelled()
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=descriptors, start_new_session=True
            )
            return self._child


def enter_check_process(parent_pid: int) -> None:
    """To be called first in the child: give way to those who answer requests, and end with the process that asked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it ended before the line above
            raise SystemExit(1)
    os.nice(NICENESS)


@contextmanager
def _descriptor(file: BinaryIO) -> Iterator[int]:
    """A descriptor that the child reads `file` from. What is not one file on the disk comes through a pipe."""
    file.seek(0)
    try:
        descriptor = file.fileno()
    except (OSError, io.UnsupportedOperation):
        with _pipe(file) as descriptor:
            yield descriptor
        return
    os.lseek(descriptor, 0, os.SEEK_SET)  # a buffered reader's seek may leave it behind the buffer
    yield descriptor


@contextmanager
def _pipe(file: BinaryIO) -> Iterator[int]:
    reading, writing = os.pipe()
    feeder = threading.Thread(target=_feed, args=(file, writing), daemon=True)
    feeder.start()
    try:
        yield reading
    finally:
        os.close(reading)  # ends the thread, if the child did not read everything
        feeder.join()


def _feed(file: BinaryIO, writing: int) -> None:
    try:
        with os.fdopen(writing, "wb") as pipe:
            shutil.copyfileobj(file, pipe, 1 << 20)
    except (OSError, ValueError):  # the child has read enough, or has ended
        return
