from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.cli.commands.jobs import progress
from app.cli.errors import NotFoundError, ServiceUnreachable


class FlakyRequest:
    """A request that fails the first times."""

    def __init__(self, failures: int, error: type[Exception] = ServiceUnreachable) -> None:
        self.failures = failures
        self.error = error

    def __call__(self) -> str:
        self.failures -= 1
        if self.failures >= 0:
            raise self.error("Unreachable.")
        return "answer"


def test_the_request_is_retried_with_one_note_until_the_server_responds(capsys: pytest.CaptureFixture[str]) -> None:
    assert progress._retry_while_unreachable(FlakyRequest(3)) == "answer"
    assert capsys.readouterr().err.count("Unreachable.") == 1


def test_the_retries_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "RETRY_TIMEOUT_SECONDS", 0.05)
    with pytest.raises(ServiceUnreachable):
        progress._retry_while_unreachable(FlakyRequest(10_000))


def test_a_permanent_error_is_not_retried() -> None:
    asked = FlakyRequest(2, NotFoundError)
    with pytest.raises(NotFoundError):
        progress._retry_while_unreachable(asked)
    assert asked.failures == 1


class OlderServer:
    """A server that ignores `wait`: it responds at once, twice that nothing has changed, then with the end."""

    def __init__(self) -> None:
        self.asked = 0

    def get_if_changed(self, _path: str, etag: str | None, _seconds: float) -> tuple[dict[str, str] | None, str]:
        self.asked += 1
        if self.asked in (2, 3):
            return None, "one"
        return {"id": "j", "status": "running" if self.asked == 1 else "succeeded"}, "one"

    def pages(self, _path: str, _limit: int) -> Iterator[dict[str, str]]:
        return iter([{"id": f"e{number}"} for number in range(self.asked, 0, -1)])


def test_a_server_without_long_polling_is_polled_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(progress.time, "sleep", slept.append)
    seen = list(progress.follow(OlderServer(), "ftjob-1"))  # type: ignore[arg-type]
    assert [(job["status"], [event["id"] for event in events]) for job, events in seen] == [
        ("running", ["e1"]),
        ("succeeded", ["e2", "e3", "e4"]),
    ]
    assert slept == [progress.POLL_SECONDS] * 3
