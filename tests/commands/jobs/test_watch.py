from __future__ import annotations

import pytest

from app.cli.commands.jobs import progress
from app.cli.errors import CliError, NotFoundError, ServiceUnreachable
from tests.sentences import Reviewed


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


def test_any_end_but_success_is_an_error(reviewed: Reviewed) -> None:
    for job in (
        {"id": "j", "status": "cancelled", "error": None},
        {"id": "j", "status": "failed", "error": {"code": "c", "message": "m"}},
    ):
        with pytest.raises(CliError) as error:
            progress.raise_unless_succeeded(job)
        reviewed(str(error.value))
