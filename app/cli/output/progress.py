"""Progress of transfers and jobs: bars on a terminal, lines in a pipe."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from app.cli.output.console import PRINT_INTERVAL_SECONDS, duration_text, print_json_line, print_line, stderr_console

Json = dict[str, Any]
TERMINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})
STYLES = {"warn": "yellow", "error": "red"}
BAR_CHARACTERS, CURVE_CHARACTERS, SPINNER_AND_GAPS_CHARACTERS = 10, 12, 4
BLOCKS = "▁▂▃▄▅▆▇█"


def bytes_progress() -> Progress:
    """Bars of bytes on standard error; nothing if that is not a terminal."""
    console = stderr_console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


@contextlib.contextmanager
def bytes_bar(title: str, total_bytes: int | None, done_bytes: int = 0) -> Iterator[Callable[[int], None]]:
    """Show one bar until the block ends; the yielded function advances it."""
    with bytes_progress() as bar:
        task = bar.add_task(title, total=total_bytes, completed=done_bytes)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def job_view(as_json: bool) -> Iterator[JobBar | JobLines | JsonLines]:
    """What shows a running job: its `event` takes each new event, then its `job` the current job object."""
    console = Console()
    if as_json:
        yield JsonLines()
    elif console.is_terminal:
        one_line = Column(no_wrap=True, overflow="ellipsis")
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=one_line),
            BarColumn(bar_width=BAR_CHARACTERS),
            TextColumn("{task.fields[numbers]}", style="cyan", markup=False, table_column=one_line),
        )
        with Progress(*columns, console=console) as bar:
            yield JobBar(bar)
    else:
        yield JobLines()


class JobBar:
    """Messages above one line: a bar, the curve of the loss, and the numbers that the terminal has room for."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, numbers="")
        self._losses = Losses()

    def event(self, event: Json) -> None:
        if not self._losses.update(event):
            self._bar.console.print(Text(event["message"], style=STYLES.get(event["level"], "dim")))

    def job(self, job: Json) -> None:
        progress, status = job.get("progress") or {}, status_text(job)
        room = self._bar.console.width - len(status) - BAR_CHARACTERS - SPINNER_AND_GAPS_CHARACTERS
        curve_text = curve(self._losses.history, CURVE_CHARACTERS)
        numbers = numbers_text(job, self._losses, room - len(curve_text) - 1)
        self._bar.update(
            self._task,
            description=status,
            completed=progress.get("step") or 0,
            total=progress.get("total_steps"),
            numbers=f"{curve_text} {numbers}".strip(),
        )


class JobLines:
    """Every message as a line, and the newest numbers every PRINT_INTERVAL_SECONDS and at the end."""

    def __init__(self) -> None:
        self._printed_at = -PRINT_INTERVAL_SECONDS
        self._printed_line = ""
        self._losses = Losses()

    def event(self, event: Json) -> None:
        if not self._losses.update(event):
            print_line(event["message"])

    def job(self, job: Json) -> None:
        numbers = numbers_text(job, self._losses)
        line = f"{status_text(job)}: {numbers}"
        is_due = is_finished(job) or time.monotonic() - self._printed_at >= PRINT_INTERVAL_SECONDS
        if numbers and is_due and line != self._printed_line:
            self._printed_at, self._printed_line = time.monotonic(), line
            print_line(line)


class JsonLines:
    """Every event as a JSON line, then the finished job."""

    def event(self, event: Json) -> None:
        print_json_line(event)

    def job(self, job: Json) -> None:
        if is_finished(job):
            print_json_line(job)


@dataclass
class Losses:
    """The newest training loss and validation loss; events with a validation loss are rarer."""

    train: float | None = None
    valid: float | None = None
    history: list[float] = field(default_factory=list, compare=False)  # the training losses, in their order

    def update(self, event: Json) -> bool:
        """Take the losses of a metrics event. Returns whether it was one."""
        if event.get("type") != "metrics":
            return False
        data = event.get("data") or {}
        self.train = _first_given(data.get("train_loss"), self.train)
        self.history += [data["train_loss"]] if data.get("train_loss") is not None else []
        self.valid = _first_given(data.get("full_valid_loss"), data.get("valid_loss"), self.valid)
        return True


def is_finished(job: Json) -> bool:
    return job["status"] in TERMINAL_STATUSES


def status_text(job: Json) -> str:
    status = str(job["status"]).replace("_", " ")
    if job.get("phase") == "waiting_for_storage":
        return f"{status} (waiting for free disk space)"
    if job["status"] == "queued" and job.get("waiting_for"):
        return f"{status} ({job['waiting_for']})"
    if job["status"] == "queued" and job.get("queue_position"):
        return f"{status} (position {job['queue_position']})"
    if job.get("pause_requested"):
        return f"{status} (pauses at its next step)"
    phase = job.get("phase")
    return f"{status}: {phase}" if phase and phase != job["status"] and not is_finished(job) else status


def numbers_text(job: Json, losses: Losses, width: int | None = None) -> str:
    """step 12/80 · epoch 0.4 · loss 2.310 · 512 tok/s · 1:20 left

    The remaining time is shown only while the job runs: other jobs keep their last estimate. What does not fit into
    `width` is left out, the least important first.
    """
    progress = job.get("progress") or {}
    if not progress.get("total_steps"):
        return ""
    is_running = job["status"] == "running" and progress.get("eta_seconds")
    parts = {
        "step": f"step {progress.get('step') or 0}/{progress['total_steps']}",
        "epoch": _format("epoch {:.1f}", progress.get("epoch")),
        "loss": _format("loss {:.3f}", losses.train),
        "validation": _format("validation {:.3f}", losses.valid),
        "speed": _format("{:,.0f} tok/s", progress.get("tokens_per_second")),
        "left": f"{duration_text(progress['eta_seconds'])} left" if is_running else "",
    }
    for name in ("", "epoch", "speed", "validation", "left"):
        parts[name] = ""
        text = " · ".join(filter(None, parts.values()))
        if width is None or len(text) <= width:
            break
    return text


def curve(values: Sequence[float], width: int) -> str:
    """At most `width` blocks whose heights are the means of consecutive values; empty below two of them."""
    finite = [value for value in values if math.isfinite(value)]
    count = min(width, len(finite))
    if count < 2:
        return ""
    ends = [len(finite) * number // count for number in range(count + 1)]
    means = [sum(finite[start:end]) / (end - start) for start, end in pairwise(ends)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def _format(template: str, value: float | None) -> str:
    return "" if value is None else template.format(value)


def _first_given(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def next_steps(job: dict[str, Any]) -> str:
    """Commands to judge, try, download and serve the adapter of a succeeded job."""
    from app.domain.artifacts.engines import (
        Engine,
        incompatibilities,
        vllm_max_lora_rank,
    )  # slow import of pydantic, which `--help` does not need
    from app.domain.jobs.spec import LoraSpec

    job_id, model = job["id"], job["model"]
    base = model.split(":")[1] if model.startswith("ft:") else model  # a tuned model: ft:BASE:organization:suffix:id
    lora = LoraSpec.model_validate(job["lora"])
    if incompatibilities(Engine.VLLM, lora):  # vLLM cannot load this adapter; it loads the merged model
        serve = [f"tunery jobs export {job_id} -o {job_id}-merged", f"vllm serve {job_id}-merged"]
    else:
        options = f"--enable-lora --max-lora-rank {vllm_max_lora_rank(lora)} --lora-modules tuned={job_id}"
        serve = [f"vllm serve $BASE {options}"]
    lines = [
        f"tunery evals wait {job_id}" if job.get("evaluation") else f"tunery eval {job_id} --file HELDOUT.jsonl",
        f"tunery ask {job_id} PROMPT",
        f"tunery adapters download {job_id}",
        f"BASE=$(tunery models where {base})   # on the server; elsewhere, set the directory of {base}",
        *serve,
    ]
    return "Next:\n" + "\n".join(f"  {line}" for line in lines)
