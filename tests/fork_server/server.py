"""The process that forks: `python -m tests.fork_server.server NAME [tests]`. One thread; it ends with its parent."""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any

import pytest

from app.system.host import PARENT_PID_VARIABLE

# What programs and tests import; none of it runs an operation of torch.
MODULES = (
    "worker.trainer.training.run", "worker.trainer.answers.evaluation", "worker.trainer.answers.generate",
    "worker.trainer.merge", "app.cli.main", "app.main", "openai",
)  # fmt: skip


class Server:
    """The listening socket, and for each running program the connection of its client."""

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        gc.freeze()  # the memory of the imports stays shared
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(f"\0{name}")
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._clients: dict[int, socket.socket] = {}
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)  # an ended program wakes the loop
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(reading, selectors.EVENT_READ)

    def serve(self) -> None:
        print("ready", flush=True)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._start(self._listener.accept()[0])
                elif isinstance(key.fileobj, socket.socket):
                    self._pass_on(key.data, key.fileobj)
                else:
                    os.read(key.fd, 4096)
                    self._end_programs()

    def _start(self, client: socket.socket) -> None:
        content, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 3)
        while not content.endswith(b"\n"):
            content += client.recv(1 << 20)
        pid = os.fork()
        if pid == 0:
            _run(json.loads(content), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self._clients[pid] = client
        self._selector.register(client, selectors.EVENT_READ, pid)

    def _pass_on(self, pid: int, client: socket.socket) -> None:
        """A byte is the number of a signal; the end of the connection is that of the client."""
        number = client.recv(1)
        with suppress(ProcessLookupError):
            os.killpg(pid, number[0] if number else signal.SIGKILL)
        if not number:
            self._selector.unregister(client)

    def _end_programs(self) -> None:
        while self._clients:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            client = self._clients.pop(pid)
            with suppress(OSError):
                client.send(os.waitstatus_to_exitcode(status).to_bytes(1, "big", signed=True))
            with suppress(KeyError):
                self._selector.unregister(client)
            client.close()


def _run(request: dict[str, Any], descriptors: list[int]) -> None:
    """Become the program; never returns."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        os.closerange(3, 1 << 16)
        os.environ.clear()
        os.environ.update(request["environment"], **{PARENT_PID_VARIABLE: str(os.getppid())})
        os.chdir(request["directory"])
        module, *sys.argv[1:] = request["arguments"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class ImportsOnly:
    """A plugin with which pytest imports the tests and makes no items of them."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self) -> list[pytest.Item]:
        return []


def import_tests() -> None:
    """Import all tests as pytest does, with rewritten asserts. What fails here fails in the processes, too."""
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        pytest.main(["--collect-only", "-q", "-n", "0", "-p", "no:cacheprovider"], plugins=[ImportsOnly()])


if __name__ == "__main__":
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch.cuda.is_available() without a context, which no fork has
    for module in MODULES:
        importlib.import_module(module)
    if sys.argv[2:] == ["tests"]:
        import_tests()
    Server(sys.argv[1]).serve()
