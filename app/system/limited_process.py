"""Functions that run in a process of their own, with limits of memory and time, which a check of the caller ends.

A fork server (app.system.fork_server) has imported what the functions need: a process starts in some 10 ms, while an
interpreter takes 0.4 s. It starts with the first call, and ends with the process that started it.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Pipe
from typing import Any, BinaryIO, Self

MEMORY_BYTES = 2 << 30  # of data: a line of 4 MiB takes 1.2 GB until it is tokens
CHECK_SECONDS = 0.1
SERVER = "app.system.fork_server"
# start: (bytes of memory, niceness) with the descriptors of the connection and of the files -> pid, or 0
# end: (pid, 0) without a descriptor -> exit status
REQUEST, REPLY = struct.Struct("qq"), struct.Struct("q")
ITEM, END, ERROR = range(3)  # what the connection carries, each with a value
INHERITED_VARIABLES = ("PATH", "PYTHONPATH", "PYTHONSAFEPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")


class ProcessEnded(Exception):
    """The process ended without a result: by a limit of memory or time, by an error of its own, or it was killed."""


class LimitedProcess:
    """A process that calls functions one after the other; each gets `files` as its last arguments."""

    def __init__(self, files: Sequence[BinaryIO] = (), *, memory_bytes: int = MEMORY_BYTES, niceness: int = 0) -> None:
        """Each file is read from its start. Raises ProcessEnded, OSError."""
        self._file_errors: list[OSError] = []
        with ExitStack() as opened:
            descriptors = [opened.enter_context(_descriptor(file, self._file_errors)) for file in files]
            self._connection, other_end = Pipe()
            opened.callback(self._connection.close)
            with other_end:
                server = _running_server()
                pid = server.request(memory_bytes, niceness, [other_end.fileno(), *descriptors])
            if not pid:
                raise ProcessEnded("the system starts no further process")
            opened.callback(server.end, pid)
            self.close = weakref.finalize(self, opened.pop_all().close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: Callable[..., Any], *arguments: Any, check: Callable[[], None] = lambda: None) -> Any:
        """Return the result of a function. Raises as `stream`."""
        (result,) = self.stream(function, *arguments, check=check)
        return result

    def stream(
        self, function: Callable[..., Any], *arguments: Any, check: Callable[[], None] = lambda: None
    ) -> Iterator[Any]:
        """Yield the items of a generator, or the result of a function.

        `function` is one of a module; it, its arguments and its results are pickled. `check` is called while there is
        no result, and ends the wait by raising: then close the process. Raises ProcessEnded, the ValueError, OSError
        or TemplateError of the function, and OSError for a file that cannot be read to its end.
        """
        try:
            self._connection.send((function, arguments))
            while True:
                while not self._connection.poll(CHECK_SECONDS):
                    check()
                kind, value = self._connection.recv()
                if kind != ITEM:
                    break
                yield value
        except (EOFError, ConnectionError) as error:
            raise ProcessEnded(f"{function.__qualname__} ended without a result") from error
        if self._file_errors:
            raise self._file_errors[0]
        if kind == ERROR:
            raise value


def memory_bytes(max_line_bytes: int) -> int:
    """The memory of a process that reads a dataset with lines of so many bytes."""
    return max(MEMORY_BYTES, 512 * max_line_bytes)


class _ForkServer:
    """The program that starts and ends the processes: the parent of all of them, so no pid is taken for another's."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._socket, other_end = socket.socketpair()
        environment = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
        with other_end:
            self._program = subprocess.Popen(
                [sys.executable, "-m", SERVER, str(other_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment | {"TOKENIZERS_PARALLELISM": "false"},
                pass_fds=[other_end.fileno()],
                start_new_session=True,
            )
        weakref.finalize(self, self._stop, self._socket, self._program)

    @property
    def is_usable(self) -> bool:
        return self.owner == os.getpid() and self._program.poll() is None

    def request(self, first: int, second: int, descriptors: Sequence[int] = ()) -> int:
        """Raises ProcessEnded."""
        try:
            with self._lock:
                if self.owner != os.getpid():
                    raise ProcessEnded("another process owns the fork server")
                socket.send_fds(self._socket, [REQUEST.pack(first, second)], descriptors)
                return int(REPLY.unpack(self._socket.recv(REPLY.size))[0])
        except (OSError, struct.error) as error:
            raise ProcessEnded("the fork server has ended") from error

    def end(self, pid: int) -> None:
        with suppress(ProcessEnded):
            self.request(pid, 0)

    @staticmethod
    def _stop(connection: socket.socket, program: subprocess.Popen[bytes]) -> None:
        connection.close()  # the server ends, and with it its processes
        program.wait()


_server: _ForkServer | None = None
_server_lock = threading.Lock()


def _running_server() -> _ForkServer:
    global _server
    with _server_lock:
        if _server is None or not _server.is_usable:
            _server = _ForkServer()
        return _server


@contextmanager
def _descriptor(file: BinaryIO, errors: list[OSError]) -> Iterator[int]:
    """Descriptor from which the process reads `file`: its own, or that of a pipe if it is not one file on the disk."""
    file.seek(0)
    try:
        descriptor = file.fileno()
    except (OSError, io.UnsupportedOperation):
        with _pipe(file, errors) as descriptor:
            yield descriptor
        return
    os.lseek(descriptor, 0, os.SEEK_SET)  # a buffered reader's seek may leave it behind the buffer
    yield descriptor


@contextmanager
def _pipe(file: BinaryIO, errors: list[OSError]) -> Iterator[int]:
    reading, writing = os.pipe()
    feeder = threading.Thread(target=_feed, args=(file, writing, errors), daemon=True)
    feeder.start()
    try:
        yield reading
    finally:
        os.close(reading)  # ends the thread, if the process did not read everything
        feeder.join()


def _feed(file: BinaryIO, writing: int, errors: list[OSError]) -> None:
    """Write the file into the pipe. An error of the file is added to `errors`: the process sees only an early end."""
    try:
        with os.fdopen(writing, "wb") as pipe:
            shutil.copyfileobj(file, pipe, 1 << 20)
    except (BrokenPipeError, ValueError):  # the process has read enough, or has ended
        return
    except OSError as error:
        errors.append(error)
