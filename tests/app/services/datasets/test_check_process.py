"""A checking process ends with its request, its time, and the process that started it."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from app.services.datasets.check_process import Check, CheckCancelledError
from app.services.datasets.line_check import check_lines
from tests.deadline import until

MODULE = "app.services.datasets.check_process"
ENDLESS = Path("/dev/zero")  # `check_lines` reads it without an end
PARENT = f"""
from app.services.datasets.check_process import Check
from app.services.datasets.line_check import check_lines
with open({str(ENDLESS)!r}, "rb") as file:
    Check().run(check_lines, 1000, files=[file])
"""


def children(of: int | None = None) -> list[psutil.Process]:
    return [each for each in psutil.Process(of).children() if MODULE in each.cmdline()]


def run(check: Check, seconds: float | None = None) -> tuple[int, list[str]]:
    with ENDLESS.open("rb") as file:
        return check.run(check_lines, 1000, files=[file], deadline_seconds=seconds)


class TestRun:
    def test_returns_the_result_of_the_function(self, tmp_path: Path) -> None:
        (tmp_path / "lines").write_bytes(b'{"a": 1}\n{}\n')
        with (tmp_path / "lines").open("rb") as file:
            file.read(3)
            assert Check().run(check_lines, 1000, files=[file]) == (2, [])
        file = io.BufferedReader(io.BytesIO(b"{}\n"))  # type: ignore[assignment,arg-type]
        assert Check().run(check_lines, 1000, files=[file]) == (1, [])

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

        with pytest.raises(OSError, match="the server is away"):
            Check().run(check_lines, 1000, files=[io.BufferedReader(Broken())])  # type: ignore[list-item]

    def test_ends_when_its_time_is_over(self) -> None:
        with pytest.raises(TimeoutError):
            run(Check(), seconds=0.2)
        assert not children()

    def test_a_child_that_fails_has_no_result(self) -> None:
        with ENDLESS.open("rb") as file, pytest.raises(ChildProcessError):
            Check().run(check_lines, "no number", files=[file])


class TestCancel:
    def test_ends_the_child(self) -> None:
        check, raised = Check(), []

        def work() -> None:
            try:
                run(check)
            except CheckCancelledError:
                raised.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        until(children, "the child", seconds=30)
        check.cancel()
        thread.join(30)
        assert raised
        assert not children()

    def test_before_its_start_lets_it_not_start(self) -> None:
        check = Check()
        check.cancel()
        with pytest.raises(CheckCancelledError):
            run(check)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_the_child_ends_with_the_process_that_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT]) as parent:
        until(lambda: children(parent.pid), "the child", seconds=30)
        (child,) = children(parent.pid)
        until(lambda: child.nice() > 0, "the child's main", seconds=30)
        parent.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "its end", seconds=30)
