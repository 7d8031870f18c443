"""The attempts of a job on a time line, and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from app.web.components.data_table import DataTable, column
from app.web.components.elements import card, note, tag
from app.web.formatting import clean, count, duration, loss, moment
from app.web.pages.jobs import wording
from app.web.pages.jobs.panels.opened_job import OpenedJob

REASONS = {
    "done": "finished",
    "drained": "stopped by its worker; progress saved",
    "gave_way": "preempted by an urgent job; progress saved",
    "paused": "paused",
    "cancelled": "cancelled",
    "worker_lost": "worker lost",
    "trainer_crashed": "trainer crashed",
    "device_lost": "GPU lost",
    "killed_for_memory": "out of memory; the next attempt uses less",
    "stalled": "no progress; stopped by the watchdog",
    "storage_full": "disk full; retried",
    "storage_unavailable": "storage unreachable; retried",
    "slot_too_small": "out of memory in its slot; the next attempt has a whole GPU",
}

Json = dict[str, Any]


def training_numbers(attempts: Sequence[Json]) -> dict[int, str]:
    """The number of each training attempt among those of its job, by the API's, which counts checks of files too."""
    trainings = sorted(one["attempt"] for one in attempts if one["kind"] == "train")
    return {attempt: str(number) for number, attempt in enumerate(trainings, 1)}


class AttemptsPanel:
    """Each attempt of a worker, as a row and as a bar on the time line of the job."""

    def __init__(self, opened: OpenedJob) -> None:
        self._view = opened.view
        self._line = tag("div")
        columns = (
            column("attempt", "Attempt", "number"),
            column("kind", "Task", lead=True),
            column("started", "Started"),
            column("time", "Duration", "number"),
            column("worker", "Worker"),
            column("result", "Result"),
        )
        self._table = DataTable("Attempts", columns)

    async def refresh(self, job: Json) -> None:
        page = await self._view.api.get(f"fine_tuning/jobs/{job['id']}/attempts")
        attempts = page["data"]
        numbers = training_numbers(attempts)
        self._table.set_rows([_attempt_row(attempt, numbers.get(attempt["attempt"], "–")) for attempt in attempts])
        self._line.clear()
        if attempts:
            with self._line, card("Time line"):
                _time_line(attempts, numbers)


def _attempt_row(attempt: Json, number: str) -> Json:
    ended = attempt["ended_at"]
    return {
        "id": str(attempt["attempt"]),
        "attempt": number,
        "kind": "Training" if attempt["kind"] == "train" else "Check of the files",
        "started": moment(attempt["started_at"], is_exact=True),
        "time": duration(ended - attempt["started_at"]) if ended else "running",
        "worker": attempt["worker_id"],
        "result": _result(attempt),
    }


def _result(attempt: Json) -> str:
    if attempt["ended_at"] is None:
        return "running"
    return REASONS.get(attempt["reason"], str(attempt["reason"])) if attempt["reason"] else "valid"


def _time_line(attempts: list[Json], numbers: dict[int, str]) -> None:
    """A bar for each attempt, from the start of the first one to the end of the last one, or until now."""
    now = time.time()
    start = min(attempt["started_at"] for attempt in attempts)
    end = max(attempt["ended_at"] or now for attempt in attempts)
    span = max(end - start, 1)
    for attempt in attempts:
        ended = attempt["ended_at"] or now
        left = min(100 * (attempt["started_at"] - start) / span, 99)
        width = min(max(100 * (ended - attempt["started_at"]) / span, 0.8), 100 - left)
        number = numbers.get(attempt["attempt"])
        kind, title = ("train", f"Attempt {number}") if number else ("check", "Check of the files")
        result = f"{_result(attempt)}, {duration(ended - attempt['started_at'])}"
        with tag("div"):
            tag("div", f"{title}: {result}", "t-hint")
            with tag("div", classes="t-track"):
                tag("div", classes=f"t-span t-span-{kind}", style=f"margin-left: {left:.1f}%; width: {width:.1f}%")
    with tag("div", classes="t-row t-hint"):
        tag("span", moment(start, is_exact=True))
        tag("span", classes="t-grow")
        tag("span", f"{duration(span)} later")


class CheckpointsPanel:
    """The kept checkpoints with their losses and archives."""

    def __init__(self, opened: OpenedJob) -> None:
        self._view = opened.view
        columns = (
            column("step", "Step", "number"),
            column("name", "Model", lead=True),
            column("train", "Train loss", "number"),
            column("valid", "Validation loss", "number"),
            column("created", "Created"),
            column("file", "Adapter"),
        )
        self._table = DataTable("Checkpoints", columns)
        self._empty = tag("div")

    async def refresh(self, job: Json) -> None:
        page = await self._view.api.get(f"fine_tuning/jobs/{job['id']}/checkpoints", limit=100)
        self._table.set_visibility(bool(page["data"]))
        self._table.set_rows([_checkpoint_row(checkpoint) for checkpoint in page["data"]])
        self._empty.clear()
        if not page["data"]:
            with self._empty:
                is_unfinished = job["status"] in wording.UNFINISHED
                text = "A checkpoint is saved at the end of each epoch and at a pause." if is_unfinished else ""
                note("No checkpoints", text)


def _checkpoint_row(checkpoint: Json) -> Json:
    metrics = checkpoint["metrics"]
    valid = metrics.get("full_valid_loss")
    archive = checkpoint["adapter_archive_file_id"]
    return {
        "id": checkpoint["id"],
        "step": count(checkpoint["step_number"]),
        "name": {
            "text": clean(checkpoint["fine_tuned_model_checkpoint"], 120),
            "sub": "best" if checkpoint["best"] else None,
        },
        "train": loss(metrics.get("train_loss")),
        "valid": loss(valid),
        "created": moment(checkpoint["created_at"]),
        "file": {"text": "Download", "href": f"/files/{archive}/content", "download": ""},
    }  # fmt: skip
