"""A child process that reads datasets for one request. It has a deadline and ends when the client disconnects.

    python -m app.services.datasets.check_process PARENT_PID < CALL > RESULT

Reading a large dataset holds the interpreter's lock, so a child with low priority does it. A pool of processes would
keep an idle interpreter per core in memory, and cannot end one task alone; starting a child takes 0.1 s.
The kernel kills the child when its parent ends.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from app.system.parent_death import die_with_parent

Result = TypeVar("Result")

MAX_IN_PROCESS_BYTES = 256 << 10  # of datasets; they take 0.3 s
MAX_IN_PROCESS_TOKENIZER_BYTES = 4 << 20  # they take 0.15 s, and are cached
NICENESS = 10


def takes_long(model_directory: Path, size_bytes: int) -> bool:
    """Whether reading a dataset with a model's tokenizer would block every other request (the interpreter lock).

    Loading a large tokenizer alone does: 33 MB take more than a second, in which no other thread runs.
    """
    tokenizer = model_directory / "tokenizer.json"
    return size_bytes > MAX_IN_PROCESS_BYTES or (
        tokenizer.exists() and tokenizer.stat().st_size > MAX_IN_PROCESS_TOKENIZER_BYTES
    )


class CheckCancelledError(Exception):
    """The client has disconnected; the result is not needed any more."""


class Check:
    """The reading of datasets for one request. `cancel` may be called from any thread, at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """Kill the child, if one is running, and start no other."""
        with self._lock:
            self._is_cancelled = True
            if self._child is not None:
                self._child.kill()

    def raise_if_cancelled(self) -> None:
        if self._is_cancelled:
            raise CheckCancelledError

    def run(
        self,
        function: Callable[..., Result],
        *arguments: Any,
        files: Sequence[BinaryIO],
        deadline_seconds: float | None = None,
    ) -> Result:
        """Return `function(*arguments, *files)`, computed in a child process, where each file is read from its start.

        `function` is one of a module; arguments and result are pickled. Raises CheckCancelledError; TimeoutError after
        `deadline_seconds`; ChildProcessError if the child fails or is killed by another process; OSError for a file
        that cannot be read to its end.
        """
        failures: list[OSError] = []
        with ExitStack() as opened:
            descriptors = [opened.enter_context(_descriptor(file, failures)) for file in files]
            with self._start(descriptors) as child:
                try:
                    call = pickle.dumps((function, arguments, descriptors))
                    result, _ = child.communicate(call, timeout=deadline_seconds)
                except subprocess.TimeoutExpired as error:
                    raise TimeoutError(f"not within {deadline_seconds} s") from error
                finally:
                    child.kill()
        self.raise_if_cancelled()
        if failures:
            raise failures[0]
        if child.returncode != 0:
            raise ChildProcessError(f"{function.__qualname__} ended with {child.returncode}")
        value: Result = pickle.loads(result)  # written by our own child
        return value

    def _start(self, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", __name__, str(os.getpid())]
        with self._lock:
            self.raise_if_cancelled()
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=descriptors, start_new_session=True
            )
            return self._child


def main(parent_pid: int) -> None:
    """Read a call from standard input, run it, write its result to standard output."""
    if not die_with_parent(parent_pid):
        raise SystemExit(1)
    os.nice(NICENESS)
    function, arguments, descriptors = pickle.load(sys.stdin.buffer)  # written by our own parent
    files = [os.fdopen(descriptor, "rb") for descriptor in descriptors]
    pickle.dump(function(*arguments, *files), sys.stdout.buffer)


@contextmanager
def _descriptor(file: BinaryIO, failures: list[OSError]) -> Iterator[int]:
    """Descriptor from which the child reads `file`: its own, or that of a pipe if it is not one file on the disk."""
    file.seek(0)
    try:
        descriptor = file.fileno()
    except (OSError, io.UnsupportedOperation):
        with _pipe(file, failures) as descriptor:
            yield descriptor
        return
    os.lseek(descriptor, 0, os.SEEK_SET)  # a buffered reader's seek may leave it behind the buffer
    yield descriptor


@contextmanager
def _pipe(file: BinaryIO, failures: list[OSError]) -> Iterator[int]:
    reading, writing = os.pipe()
    feeder = threading.Thread(target=_feed, args=(file, writing, failures), daemon=True)
    feeder.start()
    try:
        yield reading
    finally:
        os.close(reading)  # ends the thread, if the child did not read everything
        feeder.join()


def _feed(file: BinaryIO, writing: int, failures: list[OSError]) -> None:
    """Write the file into the pipe. An error of the file is added to `failures`: the child sees only an early end."""
    try:
        with os.fdopen(writing, "wb") as pipe:
            shutil.copyfileobj(file, pipe, 1 << 20)
    except (BrokenPipeError, ValueError):  # the child has read enough, or has ended
        return
    except OSError as error:
        failures.append(error)


if __name__ == "__main__":
    main(int(sys.argv[1]))
