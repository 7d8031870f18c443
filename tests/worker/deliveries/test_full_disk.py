"""What counts as a full disk, and how long a job waits after one."""

from __future__ import annotations

import errno

import pytest

from app.domain.artifacts.full_disk import is_disk_full, pause_seconds


class TestPauses:
    def test_they_double_from_half_a_minute_to_half_an_hour(self) -> None:
        waited, pauses = 0.0, []
        for _ in range(9):
            pauses.append(pause_seconds(waited))
            waited += pauses[-1]
        assert pauses == [30, 60, 120, 240, 480, 960, 1800, 1800, 1800]


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (ValueError("quota"), False),
    ],
)
def test_a_full_disk_and_a_used_quota_are_known(error: Exception, is_full: bool) -> None:
    assert is_disk_full(error) == is_full
