"""A slot of a worker in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from app.settings import Settings
from worker.jobs.program_attempt import ProgramRunner
from worker.node.resources import Resources, open_resources


@contextmanager
def running_slot(settings: Settings, make: Callable[[Resources], ProgramRunner[Any]]) -> Iterator[None]:
    """Run what is due by `make`'s runner until the block ends."""
    resources = open_resources(settings)
    runner = make(resources)

    def work() -> None:
        while not resources.stop.wait(0.02):
            runner.run_next()

    thread = threading.Thread(target=work)
    thread.start()
    yield
    resources.stop.set()
    thread.join()
    resources.close()
