"""Follow a job until it is over, through restarts of the server and lost connections."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from app.cli.client.service_discovery import job_path
from app.cli.errors import CliError, Unreachable
from app.cli.output.console import print_note
from app.cli.output.next_steps import next_steps
from app.cli.output.progress import is_over, job_view

if TYPE_CHECKING:
    from app.cli.client.http import Client

Json = dict[str, Any]
T = TypeVar("T")
PAUSE_SECONDS = 1.0  # between two looks at a job that changes with every step
WAIT_SECONDS = 20  # for a change, in one request
RETRY_TIMEOUT_SECONDS = 120.0  # a restart of the server takes seconds, of the machine a minute
EVENTS_AT_FIRST = 50  # of a job that began long ago
EVENTS_A_PAGE = 100


def watch_or_detach(client: Client, job_id: str, as_json: bool = False) -> Json:
    """Show a job until it is over and say what can be done next. Ctrl-C leaves the job alone and says how to return."""
    try:
        job = watch(client, job_id, as_json)
    except KeyboardInterrupt:
        print_note(
            f"\nDetached; the job goes on. `tunery jobs watch {job_id}` comes back to it, "
            f"`tunery jobs cancel {job_id}` ends it."
        )
        raise
    if job["status"] == "succeeded" and not as_json:
        print_note(next_steps(job))
    return job


def watch(client: Client, job_id: str, as_json: bool = False) -> Json:
    """Show a job until it is over, and return it."""
    job = client.get(job_path(job_id))  # patience is for a job that was there: a wrong id or address fails now
    with job_view(as_json) as view:
        for job, events in follow(client, job_id):
            for event in events:
                view.event(event)
            view.job(job)
    return job


def follow(client: Client, job_id: str) -> Iterator[tuple[Json, list[Json]]]:
    """The job whenever it has changed, with its new events, oldest first; the last time when it is over.

    The server answers when there is something to tell. One that does not know `wait` is asked once a second.
    """
    seen: str | None = None
    etag: str | None = None
    while True:
        # The job before its events: when it is over, so are they.
        job, etag = _retry_while_unreachable(partial(client.get_if_changed, job_path(job_id), etag, WAIT_SECONDS))
        if job is not None:
            events = _retry_while_unreachable(partial(new_events, client, job_id, seen))
            seen = events[-1]["id"] if events else seen
            yield job, events
            if is_over(job):
                return
        time.sleep(PAUSE_SECONDS)


def new_events(client: Client, job_id: str, seen: str | None) -> list[Json]:
    """What was told since `seen`, oldest first (the server lists newest first)."""
    newest_first = client.pages(job_path(job_id, "events"), EVENTS_A_PAGE)
    if seen is not None:
        return list(itertools.takewhile(lambda event: event["id"] != seen, newest_first))[::-1]
    found = list(itertools.islice(newest_first, EVENTS_AT_FIRST + 1))
    if len(found) > EVENTS_AT_FIRST:
        print_note(f"Earlier events are left out; `tunery jobs events {job_id}` shows all of them.")
    return found[:EVENTS_AT_FIRST][::-1]


def raise_unless_succeeded(job: Json) -> None:
    if job["status"] == "succeeded":
        return
    error = job.get("error") or {}
    reason = f" ({error['code']}): {error.get('message')}" if error.get("code") else "."
    raise CliError(f"{job['id']} {job['status']}{reason}")


def _retry_while_unreachable(ask: Callable[[], T]) -> T:
    """Ask again for two minutes: a watcher outlives a server that restarts."""
    lost_at: float | None = None
    while True:
        try:
            return ask()
        except Unreachable as error:
            if lost_at is None:
                lost_at = time.monotonic()
                print_note(f"{error} Trying again for {RETRY_TIMEOUT_SECONDS:.0f} seconds.")
            if time.monotonic() - lost_at > RETRY_TIMEOUT_SECONDS:
                raise
        time.sleep(PAUSE_SECONDS)
