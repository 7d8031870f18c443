from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.services.access.rate_limit import RateLimiter


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class TestRateLimiter:
    def test_lets_a_second_s_worth_pass_at_once_and_then_one_at_a_time(self) -> None:
        clock = Clock()
        limiter = RateLimiter(1000, clock)
        taken = [limiter.take("a", 4) for _ in range(5)]
        assert [each.remaining for each in taken] == [3, 2, 1, 0, 0]
        assert [each.wait_seconds for each in taken] == [0, 0, 0, 0, 0.25]
        clock.seconds += 0.25
        assert limiter.take("a", 4).wait_seconds == 0
        assert limiter.take("a", 4).wait_seconds == 0.25
        clock.seconds += 0.125  # half of a token
        assert limiter.take("a", 4).wait_seconds == 0.125

    def test_reports_when_the_bucket_is_full_again(self) -> None:
        limiter = RateLimiter(1000, Clock())
        assert limiter.take("a", 4).reset_seconds == 0.25
        assert limiter.take("a", 4).reset_seconds == 0.5

    def test_requests_wait_for_what_was_charged(self) -> None:
        clock = Clock()
        limiter = RateLimiter(1000, clock)
        limiter.take("a", 4)
        limiter.charge("a", 7)  # more than a second has
        assert limiter.take("a", 4) == (4, 0, 2.0, 1.25)
        clock.seconds += 1.25
        assert limiter.take("a", 4).wait_seconds == 0

    def test_follows_a_limit_that_was_lowered_at_once(self) -> None:
        limiter = RateLimiter(1000, Clock())
        limiter.take("a", None)
        assert limiter.take("a", 2).remaining == 1

    @given(st.integers(1, 50), st.lists(st.floats(0, 3), max_size=200))
    def test_never_lets_more_pass_than_the_limit_and_what_time_added(self, limit: int, pauses: list[float]) -> None:
        clock = Clock()
        limiter = RateLimiter(1000, clock)
        passed = 0
        for pause in pauses:
            clock.seconds += pause
            passed += limiter.take("a", limit).wait_seconds == 0
            assert passed <= limit * (1 + clock.seconds - 100) + 1e-6

    @given(st.integers(1, 50), st.lists(st.floats(0, 0.5), min_size=1, max_size=100))
    def test_a_request_after_wait_seconds_is_allowed(self, limit: int, pauses: list[float]) -> None:
        clock = Clock()
        limiter = RateLimiter(1000, clock)
        for pause in pauses:
            clock.seconds += pause
            taken = limiter.take("a", limit)
            if taken.wait_seconds:
                clock.seconds += taken.wait_seconds + 1e-9
                assert limiter.take("a", limit).wait_seconds == 0
