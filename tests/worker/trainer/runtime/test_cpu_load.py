from __future__ import annotations

import time

import pytest

from worker.trainer.runtime.cpu_load import CpuSample, others_share, take_sample


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
