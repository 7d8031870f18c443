"""A function in a process with limits: its result, its errors, and its end with the process that asked."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest

from app.services.files.files import check_lines
from app.system.limited_process import LimitedProcess, ProcessEnded
from tests.deadline import until
from tests.limited import limited_processes

pytestmark = pytest.mark.usefixtures("fork_server_with_tests")

MEBIBYTE = 1 << 20
PARENT = """
from app.services.files.files import check_lines
from app.system.limited_process import LimitedProcess
with open("/dev/zero", "rb") as file, LimitedProcess([file], niceness=3) as process:
    process.call(check_lines, 1000)
"""


class TestResults:
    def test_a_file_is_read_from_its_start(self, tmp_path: Path) -> None:
        (tmp_path / "lines").write_bytes(b'{"a": 1}\n{}\n')
        with (tmp_path / "lines").open("rb") as file:
            file.read(3)
            with LimitedProcess([file]) as process:
                assert process.call(check_lines, 1000) == (2, [])
        with LimitedProcess([io.BufferedReader(io.BytesIO(b"{}\n"))]) as process:  # type: ignore[list-item,arg-type]
            assert process.call(check_lines, 1000) == (1, [])

    def test_the_items_of_a_generator_come_one_by_one(self) -> None:
        with LimitedProcess() as process:
            endless = process.stream(count_up)
            assert [next(endless) for _ in range(3)] == [0, 1, 2]

    def test_one_process_calls_functions_one_after_the_other(self) -> None:
        with LimitedProcess() as process:
            assert [process.call(os.getpid) for _ in range(2)] == [process.call(os.getpid)] * 2
            with pytest.raises(ValueError, match="invalid literal"):
                process.call(int, "x")
            assert process.call(int, "3") == 3

    def test_a_file_that_cannot_be_read_to_its_end_is_an_error_and_not_a_short_file(self) -> None:
        class Broken(io.RawIOBase):
            """A file of a server that goes away after the first lines."""

            reads = 0

            def readable(self) -> bool:
                return True

            def seekable(self) -> bool:
                return True

            def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
                return 0

            def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
                self.reads += 1
                if self.reads > 3:
                    raise OSError("the server is away")
                buffer[:3] = b"{}\n"
                return 3

        file: BinaryIO = io.BufferedReader(Broken())  # type: ignore[assignment]
        with LimitedProcess([file]) as process, pytest.raises(OSError, match="server is away"):
            process.call(check_lines, 1000)


class TestEnds:
    @pytest.mark.parametrize(
        ("function", "argument"), [(os._exit, 0), (os.abort, None), (int, []), (bytes, 600 * MEBIBYTE)]
    )
    def test_an_exit_a_signal_an_error_and_too_much_memory_end_a_call(self, function: object, argument: object) -> None:
        arguments = () if argument is None else (argument,)
        with LimitedProcess(memory_bytes=500 * MEBIBYTE) as process, pytest.raises(ProcessEnded):
            process.call(function, *arguments)  # type: ignore[arg-type]

    def test_a_check_of_the_caller_ends_the_process(self) -> None:
        def check() -> None:
            raise InterruptedError

        before = limited_processes()
        with open("/dev/zero", "rb") as file, LimitedProcess([file]) as process, pytest.raises(InterruptedError):
            process.call(check_lines, 1000, check=check)
        assert limited_processes() <= before

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
    def test_a_process_ends_with_its_parent(self) -> None:
        with subprocess.Popen([sys.executable, "-c", PARENT]) as parent:
            try:
                until(lambda: limited_processes(parent.pid), "the process", seconds=30)
                (pid,) = limited_processes(parent.pid)
                process = psutil.Process(pid)
                until(lambda: process.nice() > psutil.Process().nice(), "its main", seconds=30)
            finally:
                parent.kill()
        until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "its end", seconds=30)

    def test_a_fork_server_that_was_killed_is_started_again(self) -> None:
        with LimitedProcess() as process:
            server = psutil.Process(process.call(os.getppid))
            server.kill()
            server.wait(30)
        with LimitedProcess() as process:
            assert process.call(int, "3") == 3


def count_up() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1
