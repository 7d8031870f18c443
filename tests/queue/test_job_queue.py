"""Hints on their way: soon, never by the thread of a request, and no more of a burst than it takes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from app.job_queue import MAX_PENDING_HINTS, WorkerNotifier
from tests.deadline import until


@pytest.fixture
def hints(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> WorkerNotifier:
    monkeypatch.setattr("app.job_queue.HINT_INTERVAL_SECONDS", 0.0)
    return WorkerNotifier(redis_url)


class TestABurst:
    def test_of_a_few_jobs_has_a_hint_for_each(self, hints: WorkerNotifier, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[Any] = []
        monkeypatch.setattr(hints, "send", sent.append)
        for _ in range(3):
            hints.send_in_background("cpu")
        hints.send_in_background("gpu")
        until(lambda: sorted(sent) == ["cpu", "cpu", "cpu", "gpu"], "every hint")

    def test_while_the_broker_hangs_takes_one_thread_and_leaves_no_more_than_wake_all_workers(
        self, hints: WorkerNotifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[Any] = []
        threads, is_back = set(), threading.Event()

        def send(queue: str) -> None:
            threads.add(threading.current_thread())
            is_back.wait(10)
            sent.append(queue)

        monkeypatch.setattr(hints, "send", send)
        hints.send_in_background("cpu")
        until(lambda: threads, "the first is on its way")
        for _ in range(10 * MAX_PENDING_HINTS):
            hints.send_in_background("cpu")
        is_back.set()
        (thread,) = threads
        thread.join(10)
        assert sent == ["cpu"] * (1 + MAX_PENDING_HINTS)

    def test_that_is_over_is_followed_by_the_next(self, hints: WorkerNotifier, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[Any] = []
        monkeypatch.setattr(hints, "send", lambda _queue: sent.append(threading.current_thread()))
        hints.send_in_background("cpu")
        until(lambda: sent, "the first")
        sent[0].join(10)
        hints.send_in_background("cpu")
        until(lambda: len(sent) == 2, "the second, by another thread")
