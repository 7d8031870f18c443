"""The records of a job: its attempts, checkpoints and events, the log of its trainer, and its samples."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from app.web.api_client import Json
from app.web.components.data_table import lead_column, number_column, state, text_column
from app.web.components.elements import box, button, card, link, prose, refilled, tag
from app.web.components.forms import filter_select, filter_text
from app.web.formatting import clean_lines, count, duration, exact_moment, loss, moment
from app.web.pages.jobs import wording
from app.web.pages.jobs.panels.panel import ListPanel, Panel, download

REASONS = {
    "done": "finished",
    "drained": "stopped by its worker; progress saved",
    "gave_way": "preempted by an urgent job; progress saved",
    "device_lost": "GPU lost",
    "killed_for_memory": "out of memory; the next attempt uses less",
    "stalled": "no progress; stopped by the watchdog",
    "storage_full": "disk full; retried",
    "storage_unavailable": "storage unreachable; retried",
    "slot_too_small": "out of memory in its slot; the next attempt has a whole GPU",
}
MAX_EVENTS = 200
MAX_LOG_CHARACTERS = 200_000
EMPTY_LOG = "The trainer has printed no warnings or errors. What happened to the job is in Events."
LEVEL_TONES = {"info": "wait", "warn": "warn", "error": "bad"}


def numbered(attempts: Sequence[Json]) -> list[Json]:
    """The attempts, each training with its number among those of its job: the API's counts checks of files, too."""
    numbers = itertools.count(1)
    return [one | {"number": next(numbers) if one["kind"] == "train" else None} for one in attempts]


def _result(attempt: Json) -> str:
    if attempt["ended_at"] is None:
        return "running"
    return REASONS.get(reason, reason.replace("_", " ")) if (reason := attempt["reason"]) else "valid"


def _time_line(attempts: list[Json]) -> None:
    """A bar for each attempt, from the start of the first one to the end of the last one, or until now."""
    now = time.time()
    start = min(attempt["started_at"] for attempt in attempts)
    end = max(attempt["ended_at"] or now for attempt in attempts)
    span = max(end - start, 1)
    for attempt in attempts:
        ended = attempt["ended_at"] or now
        left = min(100 * (attempt["started_at"] - start) / span, 99)
        width = min(max(100 * (ended - attempt["started_at"]) / span, 0.8), 100 - left)
        number = attempt["number"]
        kind, title = ("train", f"Attempt {number}") if number else ("check", "Check of the files")
        result = f"{_result(attempt)}, {duration(ended - attempt['started_at'])}"
        with tag("div"):
            tag("div", f"{title}: {result}", "t-hint")
            with box("t-track"):
                box(f"t-span t-span-{kind}", style=f"margin-left: {left:.1f}%; width: {width:.1f}%")
    with box("t-row t-hint"):
        tag("span", exact_moment(start))
        tag("span", classes="t-grow")
        tag("span", f"{duration(span)} later")


def _duration(attempt: Json) -> str:
    return duration(attempt["ended_at"] - attempt["started_at"]) if attempt["ended_at"] else "running"


class AttemptsPanel(ListPanel):
    """Each attempt of a worker, as a row and as a bar on the time line of the job."""

    name, caption, key = "attempts", "Attempts", "attempt"
    columns = (
        number_column("Attempt", "number", count),
        lead_column("Task", "number", lambda number: "Training" if number else "Check of the files"),
        text_column("Started", "started_at", exact_moment),
        number_column("Duration", "", _duration),
        text_column("Worker", "worker_id"),
        text_column("Result", "", _result),
    )

    def build(self) -> None:
        self._line = box("")
        super().build()

    async def load(self) -> None:
        """Show also what has not changed: the bar of a running attempt grows."""
        self.shown = numbered((await self.api.get(self.path))["data"])
        self.show()

    def show(self) -> None:
        super().show()
        with refilled(self._line):
            if self.shown:
                with card("Time line"):
                    _time_line(self.shown)


class CheckpointsPanel(ListPanel):
    """The kept checkpoints with their losses and archives."""

    name, caption = "checkpoints", "Checkpoints"
    columns = (
        number_column("Step", "step_number", count),
        lead_column(
            "Model", "", lambda one: {"text": one["fine_tuned_model_checkpoint"], "sub": one["best"] and "best"}
        ),
        number_column("Train loss", "metrics.train_loss", loss),
        number_column("Validation loss", "metrics.full_valid_loss", loss),
        text_column("Created", "created_at", moment),
        text_column("Adapter", "adapter_archive_file_id", lambda file_id: {"text": "Download"} | download(file_id)),
    )

    def nothing(self) -> tuple[str, str]:
        is_unfinished = self.job["status"] in wording.UNFINISHED
        return (
            "No checkpoints",
            "A checkpoint is saved at the end of each epoch and at a pause." if is_unfinished else "",
        )


class EventsPanel(ListPanel):
    """The short, durable messages, newest first."""

    name, caption, limit = "events", "Events", MAX_EVENTS
    params = {"type": "message"}  # noqa: RUF012
    columns = (
        text_column("Time", "created_at", exact_moment),
        text_column("Level", "level", state(LEVEL_TONES)),
        lead_column("Event", "message"),
    )

    def build(self) -> None:
        super().build()
        self._more = prose(f"The newest {MAX_EVENTS} events; all: `tunery jobs events {self.job['id']}`", "t-muted")
        self._more.set_visibility(False)

    def show(self) -> None:
        super().show()
        self._more.set_visibility(len(self.shown) == MAX_EVENTS)


class LogPanel(Panel):
    """The end of the trainer's log: search, follow, download."""

    def build(self) -> None:
        self._text = ""
        self._href = f"/jobs/{self.job['id']}/log.txt"
        self._numbers: dict[str, int] = {}  # of the trainings, by the API's number
        self._offered: object = None  # the number of trainings whose attempts the select has
        with box("t-filters"):
            self._search = filter_text("Search the log", "", self._show)
            with tag("div") as self._attempts:
                self._attempt = filter_select("Attempt", {"": "Last attempt"}, "", self.load)
            self._follow_button = button("", self._toggle)
            self._download = link("Download", self._href, "t-button", download="")
        self._is_following, self._may_grow = False, True
        self._toggle()
        self._output = tag("pre", classes="t-code t-log", tabindex="0", aria_label="Log of the trainer")

    async def refresh(self, job: Json) -> None:
        self._may_grow = job["status"] in wording.UNFINISHED
        if job["attempts"] != self._offered:
            await self._offer_attempts(job)
        if self._is_following:
            await self.load()

    async def _offer_attempts(self, job: Json) -> None:
        """The attempts that trained, under the numbers of the tab Attempts: a check of the files has no log."""
        attempts = numbered((await self.api.get(f"{self.path}/attempts"))["data"])
        self._numbers = {str(one["attempt"]): one["number"] for one in reversed(attempts) if one["number"]}
        options = {"": "Last attempt"} | {each: f"Attempt {number}" for each, number in self._numbers.items()}
        self._offered = job["attempts"]
        with refilled(self._attempts):
            self._attempt = filter_select("Attempt", options, self._attempt.value, self.load)

    async def load(self) -> None:
        attempt = self._attempt.value
        query = f"?attempt={attempt}&number={self._numbers[attempt]}" if attempt else ""
        self._download.props["href"] = f"{self._href}{query}"
        text = await self.api.text(f"{self.path}/logs", attempt=attempt or None)
        if attempt == self._attempt.value:  # no other one was chosen meanwhile
            self._text = text
            self._show()

    def _show(self) -> None:
        needle = self._search.value.lower()
        lines = [line for line in self._text.split("\n") if needle in line.lower()]
        text = clean_lines("\n".join(lines)[-MAX_LOG_CHARACTERS:], MAX_LOG_CHARACTERS)
        is_empty = not self._text.strip()
        self._output.set_text(text if text.strip() else EMPTY_LOG if is_empty else "No line matches.")
        self._follow_button.set_visibility(self._may_grow and not is_empty)
        if self._is_following:
            self._output.client.run_javascript(f"getHtmlElement({self._output.id})?.scrollTo(0, 1e9)")

    def _toggle(self) -> None:
        self._is_following = not self._is_following
        self._follow_button.set_text("Following" if self._is_following else "Follow")
        self._follow_button.props["aria-pressed"] = "true" if self._is_following else "false"


class SamplesPanel(ListPanel):
    """Answers of base model and adapter at each evaluation, side by side."""

    name, limit = "events", 1_000
    params = {"type": "message"}  # noqa: RUF012

    def nothing(self) -> tuple[str, str]:
        text = "A job with sample prompts shows here how base model and adapter answer them at each evaluation."
        return "No samples", text

    async def request(self) -> list[Json]:
        return [one["data"] for one in await super().request() if {"prompt", "base", "tuned"} <= one["data"].keys()]

    def card(self, one: Json) -> None:
        with card():
            with box("t-row"):
                tag("span", f"Step {one.get('step', '–')}", "t-pill t-wait")
                tag("h2", one["prompt"])
            with box("t-grid"):
                for label, key in (("Base model", "base"), ("Adapter", "tuned")):
                    with box("t-stack"):
                        tag("div", label, "t-label t-muted")
                        tag("p", str(one[key]), "t-answer", dir="auto")
