"""The number of API processes in uvicorn's options, and the directory that they share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.telemetry.multiprocess import MULTIPROCESS_VARIABLE, shared_metrics, worker_count


@pytest.mark.parametrize(
    ("arguments", "environment", "count"),
    [
        ([], {}, 1),
        (["--port", "8000", "--workers", "4"], {}, 4),
        (["--workers=3"], {"WEB_CONCURRENCY": "2"}, 3),
        ([], {"WEB_CONCURRENCY": "2"}, 2),
        (["--workers"], {}, 1),
        (["--workers", "many"], {}, 1),
    ],
)
def test_the_number_of_processes_is_that_of_uvicorn(
    arguments: Sequence[str], environment: dict[str, str], count: int
) -> None:
    assert worker_count(arguments, environment) == count


def test_several_processes_share_a_directory_that_is_deleted_at_the_end_and_one_has_none() -> None:
    with shared_metrics(2):
        directory = Path(os.environ[MULTIPROCESS_VARIABLE])
        assert directory.is_dir()
    assert not directory.exists()
    with shared_metrics(1):
        assert MULTIPROCESS_VARIABLE not in os.environ
