"""Which bodies are too slow: those that are silent for too long, or below the lowest average rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.middleware.request_body import BodyPace
from app.errors import RequestTimeout
from app.settings import Settings

SETTINGS = Settings(database_url="postgresql://nowhere/x", redis_url="redis://nowhere")
HOUR = 3600


def send(interval_seconds: float, chunk_bytes: int, seconds: float = HOUR) -> float:
    """How long a client of a constant pace may go on, at most `seconds`."""
    pace, elapsed = BodyPace(SETTINGS), 0.0
    next_chunk = interval_seconds
    while elapsed < seconds:
        waited = min(pace.next_check_seconds, next_chunk)
        elapsed += waited
        next_chunk -= waited
        arrived = next_chunk <= 0
        try:
            pace.add(waited, chunk_bytes if arrived else 0)
        except RequestTimeout:
            return elapsed
        if arrived:
            next_chunk = interval_seconds
    return elapsed


@given(st.integers(1, 29), st.integers(2_000, 1 << 20))
def test_a_client_above_the_lowest_rate_is_never_cut(interval_seconds: int, bytes_per_second: int) -> None:
    """At twice the rate, as a window may begin and end within an interval."""
    assert send(interval_seconds, interval_seconds * bytes_per_second) >= HOUR


@given(st.integers(1, 29), st.integers(1, 990))
def test_a_client_below_it_is_cut_within_two_windows(interval_seconds: int, bytes_per_second: int) -> None:
    assert send(interval_seconds, interval_seconds * bytes_per_second) <= 2 * SETTINGS.body_rate_window_seconds + 1


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_a_silence_is_cut_however_much_came_before(chunk_bytes: int) -> None:
    pace = BodyPace(SETTINGS)
    pace.add(0.1, chunk_bytes)
    assert pace.next_check_seconds == SETTINGS.body_idle_seconds
    with pytest.raises(RequestTimeout, match="No byte of the request body arrived for 30 s"):
        pace.add(pace.next_check_seconds, 0)


def test_time_that_the_server_needed_does_not_count() -> None:
    """Ten minutes pass between two reads: nobody waited for the client."""
    pace = BodyPace(SETTINGS)
    for _ in range(100):
        pace.add(0.0, 10)
    assert pace.next_check_seconds == SETTINGS.body_idle_seconds
