"""Places in the queue: what a forecast is made of, and which rows it writes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy import select

from app.db.engine import Sessions, transaction
from app.db.scheduling import queue_positions
from app.db.tables import QueuePlace
from app.domain.scheduling.forecast import JobForecast

LATER = 100_000.0


def places(count: int, shift: int = 0, start: float | None = LATER, lack: str | None = None) -> list[JobForecast]:
    """Of so many jobs, each `shift` places from where it would be."""
    return [JobForecast(f"j{number}", "p", number + shift, start, lack) for number in range(1, count + 1)]


def write(sessions: Sessions, placed: Sequence[JobForecast]) -> int:
    with transaction(sessions) as session:
        return queue_positions.write_positions(session, placed)


def rows(sessions: Sessions) -> dict[str, QueuePlace]:
    with transaction(sessions) as session:
        return {row.job_id: row for row in session.scalars(select(QueuePlace))}


class TestWrite:
    def test_only_moved_positions_are_written_and_those_of_jobs_that_left_are_deleted(self, sessions: Sessions) -> None:
        assert write(sessions, places(300, shift=1)) == 300
        assert write(sessions, places(300, shift=1)) == 0
        assert write(sessions, places(3)) == 3
        assert {job_id: row.position for job_id, row in rows(sessions).items()} == {"j1": 1, "j2": 2, "j3": 3}
        write(sessions, [])
        assert rows(sessions) == {}

    def test_a_start_is_a_whole_minute(self, sessions: Sessions) -> None:
        write(sessions, places(1))
        start = rows(sessions)["j1"].expected_start_at
        assert start is not None
        assert (start.second, start.microsecond) == (0, 0)
        assert abs((start - datetime.now(UTC)).total_seconds() - LATER) < 35

    @pytest.mark.parametrize("change", [{"start": None}, {"lack": "no worker"}], ids=str)
    def test_a_start_or_reason_that_changed_is_written(self, sessions: Sessions, change: dict[str, None]) -> None:
        write(sessions, places(1))
        assert write(sessions, places(1, **change)) == 1
        assert write(sessions, places(1, **change)) == 0
        assert write(sessions, places(1)) == 1

    def test_a_change_alone_notifies(self, sessions: Sessions, database_url: str) -> None:
        # No connection of a pool: nothing reads there, and a listener with a full socket stops every DROP DATABASE.
        url = database_url.replace("+psycopg", "", 1)
        with psycopg.connect(url, autocommit=True) as listener:
            listener.execute("LISTEN tunery_jobs")

            def heard() -> list[str]:
                return [each.payload for each in listener.notifies(timeout=0.2)]

            write(sessions, places(1))
            assert heard() == ["- - 0 queue"]
            write(sessions, places(1))
            assert heard() == []
