"""The records of a job: its events, the log of its trainer, and its samples."""

from __future__ import annotations

from typing import Any

from app.web.components.data_table import DataTable, column
from app.web.components.elements import button, card, link, note, tag, user_text
from app.web.components.forms import filter_select, filter_text
from app.web.formatting import clean, clean_lines, moment
from app.web.pages.jobs import wording
from app.web.pages.jobs.panels.attempts import training_numbers
from app.web.pages.jobs.panels.opened_job import OpenedJob

MAX_EVENTS = 200
MAX_LOG_CHARACTERS = 200_000
MAX_ANSWER_CHARACTERS = 4_000
EMPTY_LOG = "The trainer has printed no warnings or errors. What happened to the job is in Events."
LEVEL_TONES = {"info": "wait", "warn": "warn", "error": "bad"}

Json = dict[str, Any]


class EventsPanel:
    """The short, durable messages, newest first."""

    def __init__(self, opened: OpenedJob) -> None:
        self._view = opened.view
        columns = (column("time", "Time"), column("level", "Level"), column("message", "Event", lead=True))
        self._table = DataTable("Events", columns)
        self._more = tag("p", f"The newest {MAX_EVENTS} events; all: tunery jobs events {opened.job['id']}", "t-muted")
        self._more.set_visibility(False)

    async def refresh(self, job: Json) -> None:
        events = await self._view.api.items(f"fine_tuning/jobs/{job['id']}/events", MAX_EVENTS, type="message")
        self._more.set_visibility(len(events) == MAX_EVENTS)
        self._table.set_rows(
            [
                {
                    "id": event["id"],
                    "time": moment(event["created_at"], is_exact=True),
                    "level": {"text": event["level"], "tone": LEVEL_TONES[event["level"]]},
                    "message": clean(event["message"], 2_000),
                }
                for event in events
            ]
        )


class LogPanel:
    """The end of the trainer's log: search, follow, download."""

    def __init__(self, opened: OpenedJob) -> None:
        self._view, job = opened.view, opened.job
        self._text = ""
        self._job_id = job["id"]
        self._path = f"fine_tuning/jobs/{job['id']}"
        self._numbers: dict[str, str] = {}  # of the trainings, by the API's number
        self._offered: object = None  # the number of trainings whose attempts the select has
        self._requested = 0
        with tag("div", classes="t-filters"):
            self._search = filter_text("Search the log", "", self._show)
            with tag("div") as self._attempts:
                self._attempt = filter_select("Attempt", {"": "Last attempt"}, "", self._load)
            self._follow_button = button("Following", self._toggle)
            self._follow_button.props["aria-pressed"] = "true"
            self._download = link("Download", f"/jobs/{job['id']}/log.txt", "t-button", download="")
        self._is_following = self._may_grow = True
        self._output = tag("pre", classes="t-code t-log", tabindex="0", aria_label="Log of the trainer")

    async def refresh(self, job: Json) -> None:
        self._may_grow = job["status"] in wording.UNFINISHED
        if job["attempts"] != self._offered:
            await self._offer_attempts(job)
        if self._is_following:
            await self._load()

    async def _offer_attempts(self, job: Json) -> None:
        """The attempts that trained, under the numbers of the tab Attempts: a check of the files has no log."""
        numbers = training_numbers((await self._view.api.get(f"{self._path}/attempts"))["data"])
        self._numbers = {str(attempt): numbers[attempt] for attempt in reversed(numbers)}
        options = {"": "Last attempt"} | {each: f"Attempt {number}" for each, number in self._numbers.items()}
        self._offered = job["attempts"]
        self._attempts.clear()
        with self._attempts:
            self._attempt = filter_select("Attempt", options, self._attempt.value, self._load)

    async def _load(self) -> None:
        self._requested += 1
        number = self._requested
        attempt = self._attempt.value
        query = f"?attempt={attempt}&number={self._numbers[attempt]}" if attempt else ""
        self._download.props["href"] = f"/jobs/{self._job_id}/log.txt{query}"
        text = await self._view.api.text(f"{self._path}/logs", attempt=attempt or None)
        if number == self._requested:
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
            user_text(sample["prompt"], "h2", max_characters=2_000)
        with tag("div", classes="t-grid"):
            for label, key in (("Base model", "base"), ("Adapter", "tuned")):
                with tag("div", classes="t-stack"):
                    tag("div", label, "t-label t-muted")
                    tag("p", clean_lines(str(sample[key]), MAX_ANSWER_CHARACTERS), "t-answer", dir="auto")
