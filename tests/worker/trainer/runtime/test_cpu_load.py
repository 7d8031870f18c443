from __future__ import annotations

import time

import pytest

from worker.trainer.runtime.cpu_load import CpuSample, is_crowded, others_share, take_sample


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
    def test_other_programs_may_use_the_cores_our_threads_do_not_need(
        self, others_cores: float, cores: int, threads: int, expected: bool
    ) -> None:
        before = CpuSample(100.0, 1000.0, 50.0)
        after = CpuSample(102.0, 1000.0 + 2 * (threads + others_cores), 50.0 + 2 * threads)

        assert is_crowded(before, after, cores, threads) is expected

    def test_the_work_of_this_process_does_not_count(self) -> None:
        before = CpuSample(0.0, 0.0, 0.0)

        assert not is_crowded(before, CpuSample(1.0, 2.0, 2.0), cores=2, threads=2)


class TestOthersShare:
    @pytest.mark.parametrize(
        ("busy_seconds", "own_seconds", "expected"), [(8, 8, 0), (8, 2, 0.75), (8, 0, 1), (7, 8, 0)]
    )
    def test_is_what_other_programs_used_of_the_cores(
        self, busy_seconds: float, own_seconds: float, expected: float
    ) -> None:
        before, after = CpuSample(0.0, 100.0, 10.0), CpuSample(4.0, 100.0 + busy_seconds, 10.0 + own_seconds)
        assert others_share(before, after, cores=2) == expected


class TestTakeSample:
    def test_elapsed_time_and_own_cpu_time_increase(self) -> None:
        before = take_sample()
        deadline = time.process_time() + 0.02
        while time.process_time() < deadline:
            pass
        after = take_sample()

        assert after.at_seconds > before.at_seconds
        assert after.own_seconds >= before.own_seconds + 0.02
        assert after.busy_seconds >= before.busy_seconds
