from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from worker.trainer import openmp
from worker.trainer.openmp import Crowd, Sample, cores_watched, is_crowded, take_sample

STAND = """
import worker.trainer, os
import torch
from worker.trainer.openmp import Crowd

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
torch.ones(1 << 20).exp_()
crowd = Crowd(2)
alone = threads()
crowd.gather(); crowd.gather()
together = threads()
crowd.dismiss(); crowd.dismiss()
while threads() > alone:
    pass
print(together - alone, len(os.sched_getaffinity(0)), crowd.is_here)
"""


class TestIsCrowded:
    @pytest.mark.parametrize(
        ("others_cores", "cores", "threads", "expected"),
        [
            (0.0, 2, 2, False),
            (0.2, 2, 2, False),
            (0.3, 2, 2, True),
            (1.0, 2, 1, False),
            (1.3, 2, 1, True),
            (7.5, 16, 8, False),
            (8.5, 16, 8, True),
        ],
    )
    def test_others_may_use_what_our_threads_do_not_need(
        self, others_cores: float, cores: int, threads: int, expected: bool
    ) -> None:
        before = Sample(100.0, 1000.0, 50.0)
        after = Sample(102.0, 1000.0 + 2 * (threads + others_cores), 50.0 + 2 * threads)

        assert is_crowded(before, after, cores, threads) is expected

    def test_our_own_work_does_not_crowd_us(self) -> None:
        before = Sample(0.0, 0.0, 0.0)

        assert not is_crowded(before, Sample(1.0, 2.0, 2.0), cores=2, threads=2)


def test_a_library_that_was_replaced_while_it_runs_costs_the_switch_and_not_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f00-7f01 r-xp 00000000 fe:00 42   /usr/lib/torch.libs/libgomp-a34b3233.so.1 (deleted)\n")
    monkeypatch.setattr(openmp, "MAPS", maps)

    crowd = Crowd(1)
    crowd.gather()

    assert not crowd.is_here


class TestTakeSample:
    def test_time_and_our_own_work_only_grow(self) -> None:
        before = take_sample()
        deadline = time.process_time() + 0.02
        while time.process_time() < deadline:
            pass
        after = take_sample()

        assert after.at_seconds > before.at_seconds
        assert after.own_seconds >= before.own_seconds + 0.02
        assert after.busy_seconds >= before.busy_seconds


class TestCrowd:
    def test_its_threads_outnumber_the_processors_and_leave_when_dismissed(self) -> None:
        ran = subprocess.run([sys.executable, "-c", STAND], capture_output=True, text=True, timeout=120, check=True)
        gathered, cores, is_here = ran.stdout.split()

        assert 2 + int(gathered) > int(cores)
        assert is_here == "False"


class TestCoresWatched:
    def test_leaves_no_thread_of_python_behind(self) -> None:
        before = set(threading.enumerate())
        with cores_watched(1):
            assert {thread.name for thread in set(threading.enumerate()) - before} >= {"cores"}
        assert [thread.name for thread in set(threading.enumerate()) - before if thread.name == "cores"] == []
