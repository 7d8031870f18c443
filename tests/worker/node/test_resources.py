"""Writes are repeated while a bucket fails: until it works, the limit, or the end of the worker or of the lease."""

from __future__ import annotations

import errno
import threading

import pytest
from structlog.testing import capture_logs

from app.storage import StorageError
from worker.node import resources
from worker.node.resources import StorageOutage, errors_logged


class Bucket:
    """Fails `failures` times with `error`, then works."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0
        self.error: OSError = StorageError(errno.EIO, "the bucket is away")
        self.messages: list[str] = []

    def put(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "stored"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "STORAGE_RETRY_SECONDS", 0.001)


def retry(outage: StorageOutage, bucket: Bucket) -> str:
    return outage.retry(bucket.put, bucket.messages.append, lambda: None)


def test_an_operation_is_repeated_until_it_succeeds_with_one_message() -> None:
    bucket = Bucket(failures=5)
    assert retry(StorageOutage(threading.Event(), 600), bucket) == "stored"
    assert (bucket.calls, len(bucket.messages)) == (6, 1)


def test_the_limit_counts_from_the_first_failure_of_any_operation_and_anew_after_a_success() -> None:
    outage, away = StorageOutage(threading.Event(), 0.05), Bucket(failures=10**9)
    with pytest.raises(StorageError):
        retry(outage, away)
    assert away.calls > 1
    later = Bucket(failures=1)
    with pytest.raises(StorageError):  # the outage has lasted for the limit: this one is tried once
        retry(outage, later)
    assert retry(outage, later) == "stored"
    assert retry(outage, Bucket(failures=3)) == "stored"


@pytest.mark.parametrize(
    ("error", "is_stopping"),
    [
        (StorageError(errno.ENOSPC, "full"), False),
        (StorageError(errno.EDQUOT, "full"), False),
        (FileNotFoundError("gone"), False),
        (StorageError(errno.EIO, "away"), True),
    ],
    ids=["full", "over its quota", "another error", "a worker that stops"],
)
def test_an_operation_is_not_repeated(error: OSError, is_stopping: bool) -> None:
    stop, bucket = threading.Event(), Bucket(failures=10**9)
    bucket.error = error
    if is_stopping:
        stop.set()
    with pytest.raises(type(error)):
        retry(StorageOutage(stop, 600), bucket)
    assert bucket.calls == 1


def test_a_lost_lease_ends_the_wait() -> None:
    def check() -> None:
        raise InterruptedError("fenced")

    bucket = Bucket(failures=10**9)
    with pytest.raises(InterruptedError):
        StorageOutage(threading.Event(), 600).retry(bucket.put, bucket.messages.append, check)
    assert bucket.calls == 1


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [(PermissionError(errno.EACCES, "no", "/data"), False), (OSError(errno.ENOSPC, "full"), True), (KeyError(), True)],
)
def test_a_loop_goes_on_after_an_error_and_only_one_with_a_path_has_no_traceback(
    error: Exception, has_traceback: bool
) -> None:
    with capture_logs() as lines, errors_logged("cleanup"):
        raise error
    (line,) = lines
    assert (line["event"], line["log_level"], "exc_info" in line) == ("cleanup failed", "error", has_traceback)
