"""The fork server of app.system.limited_process: `python -m app.system.fork_server DESCRIPTOR`.

It has one thread and only answers requests, so it notices at once that its parent has ended; the kernel then kills its
processes.
"""

from __future__ import annotations

import gc
import inspect
import os
import resource
import signal
import socket
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection

from jinja2 import TemplateError

from app.domain.datasets import profile, report  # noqa: F401  (imported for the processes)
from app.domain.evaluations import rows  # noqa: F401
from app.system import limited_rendering, table_files  # noqa: F401
from app.system.host import die_with_parent
from app.system.limited_process import END, ERROR, ITEM, REPLY, REQUEST

MAX_DESCRIPTORS = 8


def main(descriptor: int) -> None:
    gc.freeze()  # the memory of the imports stays shared
    with socket.socket(fileno=descriptor) as control:
        while True:
            request, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, MAX_DESCRIPTORS)
            if not request:
                return
            first, second = REQUEST.unpack(request)
            control.send(REPLY.pack(_start(control, first, second, descriptors) if descriptors else _end(first)))


def _start(control: socket.socket, memory_bytes: int, niceness: int, descriptors: list[int]) -> int:
    """The pid of a new process; 0 if there is none."""
    server = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        pid = -1
    if pid == 0:
        try:
            control.close()
            if die_with_parent(server):
                _limit(memory_bytes, niceness)
                with suppress(EOFError, ConnectionError):
                    _serve(Connection(descriptors[0]), descriptors[1:])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    for descriptor in descriptors:
        os.close(descriptor)
    return max(pid, 0)


def _end(pid: int) -> int:
    """The exit status of the process, which is killed if it still runs."""
    os.kill(pid, signal.SIGKILL)  # no other process can have its pid until it is waited for
    return os.waitpid(pid, 0)[1]


def _limit(memory_bytes: int, niceness: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = memory_bytes if most == resource.RLIM_INFINITY else min(memory_bytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(niceness)


def _serve(connection: Connection, descriptors: list[int]) -> None:
    files = [os.fdopen(descriptor, "rb") for descriptor in descriptors]
    while True:
        function, arguments = connection.recv()  # written by our own parent
        try:
            result = function(*arguments, *files)
            for item in result if inspect.isgenerator(result) else (result,):
                connection.send((ITEM, item))
        except ConnectionError:
            raise
        except (ValueError, OSError, TemplateError) as error:
            connection.send((ERROR, error))
        else:
            connection.send((END, None))


if __name__ == "__main__":
    main(int(sys.argv[1]))
