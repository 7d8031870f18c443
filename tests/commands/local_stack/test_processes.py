"""Children with real processes: nothing outlives its parent, nobody else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.cli.local_stack.processes import MAX_LOG_BYTES, ChildProcess, exclusive_lock, open_log, terminate_leftovers
from tests.commands.local_stack.support import start_python
from tests.deadline import until
from tests.processes import is_alive

FAMILY = """
import subprocess, sys, time
from pathlib import Path
from app.cli.local_stack.processes import ChildProcess
import os
place = Path(sys.argv[1])
grandchild = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
child = ChildProcess("x", [sys.executable, "-c", grandchild], place / "log", place, dict(os.environ), place)
child.start()
print(child.pid, flush=True)
time.sleep(600)
"""


def make_child(place: Path, code: str) -> ChildProcess:
    return ChildProcess("x", [sys.executable, "-c", code], place / "x.log", place, dict(os.environ), place)


def read_pid(log: Path) -> int:
    return int(until(lambda: log.exists() and log.read_text().strip(), "a line in the log"))


class TestChild:
    def test_what_it_prints_goes_to_its_log_readable_by_us_only(self, tmp_path: Path) -> None:
        child = make_child(tmp_path, "import sys; print('out'); print('err', file=sys.stderr)")
        child.start()
        assert child.wait(10)
        assert set(child.log.read_text().split()) == {"out", "err"}
        assert child.log.stat().st_mode & 0o777 == 0o600

    def test_kill_ends_what_it_started_too(self, tmp_path: Path) -> None:
        child = make_child(
            tmp_path,
            "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)",
        )
        child.start()
        grandchild = read_pid(child.log)
        child.kill()
        until(lambda: not is_alive(grandchild), "its end")

    def test_stop_kills_a_process_that_ignores_the_signal(self, tmp_path: Path) -> None:
        child = make_child(
            tmp_path, "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
        )
        child.start()
        pid = child.pid
        assert pid is not None
        read_pid(child.log)
        child.stop_seconds = 0.1
        child.stop()
        assert not is_alive(pid)

    @pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG is Linux's")
    def test_it_dies_with_a_parent_that_is_killed_and_the_next_start_ends_its_children(self, tmp_path: Path) -> None:
        parent = start_python(FAMILY, tmp_path)
        assert parent.stdout is not None
        child, grandchild = int(parent.stdout.readline()), read_pid(tmp_path / "log")
        parent.kill()
        parent.communicate()
        until(lambda: not is_alive(child), "its end")
        assert is_alive(grandchild)
        assert terminate_leftovers(tmp_path, signal.SIGKILL, 10) == [grandchild]
        assert not is_alive(grandchild)


class TestLeftovers:
    def test_a_process_with_another_mark_or_none_is_left_alone(self, tmp_path: Path) -> None:
        ours, other = make_child(tmp_path, "import time; time.sleep(600)"), subprocess.Popen(["sleep", "600"])
        ours.start()
        try:
            assert terminate_leftovers(tmp_path / "elsewhere", signal.SIGKILL, 1) == []
            assert is_alive(other.pid)
            assert ours.exit_code is None
        finally:
            ours.kill()
            other.kill()
            other.wait()

    def test_an_unreaped_zombie_does_not_hold_it_up(self, tmp_path: Path) -> None:
        child = make_child(tmp_path, "import time; time.sleep(600)")
        child.start()
        pid = child.pid
        assert pid is not None
        terminate_leftovers(tmp_path, signal.SIGKILL, 5)  # we are its parent and have not waited for it
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        child.kill()


class TestExclusive:
    def test_a_child_does_not_inherit_it(self, tmp_path: Path) -> None:
        child = make_child(tmp_path, "import time; time.sleep(600)")
        with exclusive_lock(tmp_path / "lock", "taken"):
            child.start()
        with exclusive_lock(tmp_path / "lock", "taken"):
            child.kill()


def test_a_large_log_is_rotated_once(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with log.open("wb") as file:
        file.truncate(MAX_LOG_BYTES + 1)
    with open_log(log) as descriptor:
        os.write(descriptor, b"new")
    assert log.read_bytes() == b"new"
    assert (tmp_path / "x.log.1").stat().st_size == MAX_LOG_BYTES + 1
