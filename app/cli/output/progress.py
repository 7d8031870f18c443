"""Bars on a terminal, lines in a pipe: the bytes of a transfer, the steps of a job."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from app.cli.output.console import duration_text, messages, print_json_line, print_line

Json = dict[str, Any]
OVER = frozenset({"succeeded", "failed", "cancelled"})
STYLES = {"warn": "yellow", "error": "red"}
SECONDS_BETWEEN_NUMBERS = 10.0  # in a pipe, where every line stays


class View(Protocol):
    """Who shows a job while it runs: each new event, then the job as it is."""

    def event(self, event: Json) -> None: ...

    def job(self, job: Json) -> None: ...


@contextlib.contextmanager
def bytes_bar(title: str, total_bytes: int | None, done_bytes: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, gone at the end; nothing at all in a pipe."""
    console = messages()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=total_bytes, completed=done_bytes)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def job_view(as_json: bool) -> Iterator[View]:
    console = Console()
    if as_json:
        yield JsonLines()
    elif console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), _Numbers())
        with Progress(*columns, console=console) as bar:
            yield JobBar(bar)
    else:
        yield JobLines()


class JobBar:
    """Messages scroll by above; below them one bar with step, loss, tokens per second and time left."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, numbers="")
        self._losses = Losses()

    def event(self, event: Json) -> None:
        if not self._losses.take(event):
            self._bar.console.print(Text(event["message"], style=STYLES.get(event["level"], "dim")))

    def job(self, job: Json) -> None:
        progress = job.get("progress") or {}
        self._bar.update(
            self._task,
            description=status_text(job),
            completed=progress.get("step") or 0,
            total=progress.get("total_steps"),
            numbers=numbers_text(job, self._losses),
        )


class JobLines:
    """Every message, and the newest numbers every ten seconds and at the end."""

    def __init__(self) -> None:
        self._told_at = -SECONDS_BETWEEN_NUMBERS
        self._told = ""
        self._losses = Losses()

    def event(self, event: Json) -> None:
        if not self._losses.take(event):
            print_line(event["message"])

    def job(self, job: Json) -> None:
        numbers = numbers_text(job, self._losses)
        line = f"{status_text(job)}: {numbers}"
        is_due = is_over(job) or time.monotonic() - self._told_at >= SECONDS_BETWEEN_NUMBERS
        if numbers and is_due and line != self._told:
            self._told_at, self._told = time.monotonic(), line
            print_line(line)


class JsonLines:
    """Every event as a JSON line, and at the end the job."""

    def event(self, event: Json) -> None:
        print_json_line(event)

    def job(self, job: Json) -> None:
        if is_over(job):
            print_json_line(job)


@dataclass
class Losses:
    """The newest of each kind: validation is measured far less often than training."""

    train: float | None = None
    valid: float | None = None

    def take(self, event: Json) -> bool:
        """Whether it was an event of numbers."""
        if event.get("type") != "metrics":
            return False
        data = event.get("data") or {}
        self.train = _first(data.get("train_loss"), self.train)
        self.valid = _first(data.get("full_valid_loss"), data.get("valid_loss"), self.valid)
        return True


def is_over(job: Json) -> bool:
    return job["status"] in OVER


def status_text(job: Json) -> str:
    status = str(job["status"]).replace("_", " ")
    if job.get("phase") == "waiting_for_storage":
        return f"{status} (waiting for free disk space)"
    if job["status"] == "queued" and job.get("waiting_for"):
        return f"{status} ({job['waiting_for']})"
    if job["status"] == "queued" and job.get("queue_position"):
        return f"{status} (place {job['queue_position']})"
    phase = job.get("phase")
    return f"{status}: {phase}" if phase and phase != job["status"] and not is_over(job) else status


def numbers_text(job: Json, losses: Losses) -> str:
    """step 12/80 · epoch 0.4 · loss 2.310 · 512 tok/s · 1:20 left

    The remaining time is shown only while the job runs: other jobs keep their last estimate.
    """
    progress = job.get("progress") or {}
    if not progress.get("total_steps"):
        return ""
    parts = [
        f"step {progress.get('step') or 0}/{progress['total_steps']}",
        _shown("epoch {:.1f}", progress.get("epoch")),
        _shown("loss {:.3f}", losses.train),
        _shown("validation {:.3f}", losses.valid),
        _shown("{:,.0f} tok/s", progress.get("tokens_per_second")),
    ]
    if job["status"] == "running" and progress.get("eta_seconds"):
        parts.append(f"{duration_text(progress['eta_seconds'])} left")
    return " · ".join(part for part in parts if part)


def _shown(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


class _Numbers(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["numbers"], style="cyan")
