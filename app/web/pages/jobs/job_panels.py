"""The panels of a job beside its metrics. Each shows one subject and requests it when it is opened."""

from __future__ import annotations

import json
from typing import Any

from app.web.components.data_table import DataTable, column
from app.web.components.elements import button, card, facts, link, note, tag, user_text
from app.web.components.forms import filter_select, filter_text
from app.web.formatting import clean, clean_lines, count, duration, loss, moment
from app.web.pages.jobs import wording
from app.web.pages.jobs.opened_job import OpenedJob

MAX_EVENTS = 200
MAX_LOG_CHARACTERS = 200_000
MAX_ANSWER_CHARACTERS = 4_000
LEVEL_TONES = {"info": "wait", "warn": "warn", "error": "bad"}
REASONS = {
    "done": "finished",
    "drained": "worker shut down; progress saved",
    "gave_way": "preempted by an urgent job; progress saved",
    "paused": "paused",
    "cancelled": "cancelled",
    "worker_lost": "worker lost",
    "trainer_crashed": "trainer crashed",
    "killed_for_memory": "out of memory; the next attempt uses less",
    "stalled": "no progress; stopped by the watchdog",
    "storage_full": "disk full; retried",
}

Json = dict[str, Any]


class EventsPanel:
    """The short, durable messages, newest first."""

    def __init__(self, opened: OpenedJob) -> None:
        self._view = opened.view
        columns = (column("time", "Time"), column("level", "Level"), column("message", "Event", lead=True))
        self._table = DataTable("Events", columns)

    async def refresh(self, job: Json) -> None:
        events = await self._view.api.items(f"fine_tuning/jobs/{job['id']}/events", MAX_EVENTS, type="message")
        self._table.set_rows(
            [
                {
                    "id": event["id"],
                    "time": moment(event["created_at"]),
                    "level": {"text": event["level"], "tone": LEVEL_TONES[event["level"]]},
                    "message": clean(event["message"], 2_000),
                }
                for event in events
            ]
        )


class LogPanel:
    """The end of the trainer's log: search, follow, download."""

    def __init__(self, opened: OpenedJob) -> None:
        self._view, self._job = opened.view, opened.job
        job = opened.job
        self._text = ""
        attempts = {"": "Last attempt"} | {str(n): f"Attempt {n}" for n in range(job["attempts"], 0, -1)}
        with tag("div", classes="t-filters"):
            self._search = filter_text("Search the log", "", self._show)
            self._attempt = filter_select("Attempt", attempts, "", self._load)
            self._follow_button = button("Following", self._toggle)
            self._download = link("Download", f"/jobs/{job['id']}/log.txt", "t-button", download="")
        self._is_following = True
        self._output = tag("pre", classes="t-code t-log", tabindex="0", aria_label="Log of the trainer")

    async def refresh(self, job: Json) -> None:
        self._job = job
        if self._is_following:
            await self._load()

    async def _load(self) -> None:
        attempt = self._attempt.value or None
        self._text = await self._view.api.text(f"fine_tuning/jobs/{self._job['id']}/logs", attempt=attempt)
        self._show()

    def _show(self) -> None:
        needle = self._search.value.lower()
        lines = [line for line in self._text.split("\n") if needle in line.lower()]
        text = clean_lines("\n".join(lines)[-MAX_LOG_CHARACTERS:], MAX_LOG_CHARACTERS)
        empty = "No line matches." if self._text.strip() else "The trainer has written nothing."
        self._output.set_text(text if text.strip() else empty)
        if self._is_following:
            self._output.client.run_javascript(f"getHtmlElement({self._output.id})?.scrollTo(0, 1e9)")

    def _toggle(self) -> None:
        self._is_following = not self._is_following
        self._follow_button.set_text("Following" if self._is_following else "Follow")


class SamplesPanel:
    """Answers of base model and adapter at each evaluation, side by side."""

    def __init__(self, opened: OpenedJob) -> None:
        self._view = opened.view
        self._shown = -1
        self._body = tag("div", classes="t-stack")

    async def refresh(self, job: Json) -> None:
        events = await self._view.api.items(f"fine_tuning/jobs/{job['id']}/events", 1_000, type="message")
        samples = [event["data"] for event in events if {"prompt", "base", "tuned"} <= event["data"].keys()]
        if len(samples) == self._shown:
            return
        self._shown = len(samples)
        self._body.clear()
        with self._body:
            if not samples:
                text = "A job with sample prompts shows here how base model and adapter answer them at each evaluation."
                note("No samples", text)
            for sample in samples:
                _sample(sample)


def _sample(sample: Json) -> None:
    with card():
        with tag("div", classes="t-row"):
            tag("span", f"Step {sample.get('step', '–')}", "t-pill t-wait")
            user_text(sample["prompt"], "h3", max_characters=2_000)
        with tag("div", classes="t-grid"):
            for label, key in (("Base model", "base"), ("Adapter", "tuned")):
                with tag("div", classes="t-stack"):
                    tag("div", label, "t-label t-muted")
                    tag("p", clean_lines(str(sample[key]), MAX_ANSWER_CHARACTERS), "t-answer", dir="auto")


class ConfigurationPanel:
    """Every setting with its resolved value."""

    def __init__(self, _opened: OpenedJob) -> None:
        self._job: Json = {}
        self._body = tag("div", classes="t-grid")

    async def refresh(self, job: Json) -> None:
        if self._job:
            return
        self._job = job
        method = job["method"]["type"]
        groups: dict[str, Json] = {
            "Training": {"method": method, "seed": job["seed"]} | job["method"][method]["hyperparameters"],
            "LoRA": job["lora"],
            "Quantization": job["quantization"] or {"quantization": "none: the base model is trained in 16 bits"},
            "Queue": {name: job[name] for name in ("priority", "urgent", "worker_labels")},
            "Metadata": job["metadata"] or {},
        }
        with self._body:
            for title, values in groups.items():
                if values:
                    with card(title):
                        facts({clean(name, 80): _setting(value) for name, value in values.items()})
            _compatibility(job)


def _compatibility(job: Json) -> None:
    """Whether each inference engine serves the adapter; the page of the adapter has the reasons."""
    engines = job.get("compatibility") or {}
    if engines:
        with card("Compatibility"):
            facts({clean(name, 60): "yes" if one["ok"] else "no, merged only" for name, one in engines.items()})


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 400)


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
        self._table.set_rows([_attempt_row(attempt) for attempt in attempts])
        self._line.clear()
        if attempts:
            with self._line, card("Time line"):
                _time_line(attempts)


def _attempt_row(attempt: Json) -> Json:
    ended = attempt["ended_at"]
    reason = attempt["reason"]
    return {
        "id": str(attempt["attempt"]),
        "attempt": str(attempt["attempt"]),
        "kind": "Training" if attempt["kind"] == "train" else "Check of the files",
        "started": moment(attempt["started_at"]),
        "time": duration(ended - attempt["started_at"]) if ended else "running",
        "worker": attempt["worker_id"],
        "result": REASONS.get(reason, reason) if reason else "running" if ended is None else "valid",
    }


def _time_line(attempts: list[Json]) -> None:
    start = min(attempt["started_at"] for attempt in attempts)
    end = max(attempt["ended_at"] or attempt["started_at"] for attempt in attempts)
    span = max(end - start, 1)
    for attempt in attempts:
        left = 100 * (attempt["started_at"] - start) / span
        width = max(100 * ((attempt["ended_at"] or end) - attempt["started_at"]) / span, 0.8)
        tone = "train" if attempt["kind"] == "train" else "check"
        with tag("div", classes="t-track"):
            title = f"Attempt {attempt['attempt']}"
            style = f"margin-left: {min(left, 99):.1f}%; width: {min(width, 100 - left):.1f}%"
            tag("div", classes=f"t-span t-span-{tone}", style=style, title=title)


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
