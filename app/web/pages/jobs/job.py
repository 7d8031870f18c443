"""One job: what is happening, its curves, events, log, samples, settings, attempts and files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Any

from nicegui import background_tasks, ui
from nicegui.elements.mixins.text_element import TextElement

from app.domain.jobs.states import training_seconds
from app.web.api_client import ApiError
from app.web.components.elements import (
    box,
    busy,
    button,
    card,
    error_note,
    facts,
    folded,
    link,
    note,
    pill,
    progress_bar,
    prose,
    refilled,
    tabs,
    tag,
)
from app.web.components.forms import ask
from app.web.formatting import count, duration, loss, moment, per_second
from app.web.frame import View, refresh_live, screen, set_query
from app.web.pages.housekeeping import add_job_buttons
from app.web.pages.jobs import job_form, wording
from app.web.pages.jobs.jobs import Curves
from app.web.pages.jobs.metrics import MetricsPanel, request_charts_early
from app.web.pages.jobs.panels.configuration import ConfigurationPanel
from app.web.pages.jobs.panels.deliveries import DeliveriesPanel
from app.web.pages.jobs.panels.evaluations import EvaluationsPanel
from app.web.pages.jobs.panels.exports import ExportsPanel
from app.web.pages.jobs.panels.overview import OverviewPanel, add_actions
from app.web.pages.jobs.panels.panel import Panel
from app.web.pages.jobs.panels.records import AttemptsPanel, CheckpointsPanel, EventsPanel, LogPanel, SamplesPanel

AT_ONCE_SECONDS = 0.1


PANELS: dict[str, tuple[str, type[Panel]]] = {
    "overview": ("Overview", OverviewPanel),
    "metrics": ("Curves", MetricsPanel),
    "evaluations": ("Evaluation", EvaluationsPanel),
    "samples": ("Samples", SamplesPanel),
    "settings": ("Settings", ConfigurationPanel),
    "log": ("Log", LogPanel),
}
MORE: dict[str, tuple[str, type[Panel]]] = {
    "events": ("Events", EventsPanel),
    "attempts": ("Attempts", AttemptsPanel),
    "checkpoints": ("Checkpoints", CheckpointsPanel),
    "exports": ("Exports", ExportsPanel),
    "deliveries": ("Deliveries", DeliveriesPanel),
}
FIRST, REST = "overview", "more"


ACTIONS = {  # by the name of the call: the label, the statuses, the look
    "pause": ("Pause", ("queued", "running"), ""),
    "resume": ("Resume", ("paused",), "t-primary"),
    "cancel": ("Cancel job", wording.UNFINISHED, "t-danger"),
}
CANCEL = "Cancel this job? A cancelled job cannot be resumed; its checkpoints are kept."


def offered_actions(job: dict[str, Any]) -> list[str]:
    offered = [name for name, (_, statuses, _) in ACTIONS.items() if job["status"] in statuses]
    return [name for name in offered if not (name == "pause" and job["pause_requested"])]


@screen("/jobs/{job_id}", "Job")
class JobPage(View):
    async def build(self) -> None:
        self._job_id = self.path("job_id")
        self._path = f"fine_tuning/jobs/{self._job_id}"
        self._title_state: object = None
        self._curves: Curves = self.session.kept.setdefault("curves", Curves(self.api))
        job = await self.api.get(self._path)
        ui.page_title(f"{wording.name(job)} · Tunery")
        with box("t-stack") as self._head:
            self._title = box("t-stack")
            with card():
                self._summary = box("t-stack")
                self._details = folded("Details")  # it stays open while the job changes
            self._state = box("t-stack")
        self._announced = box("t-sr-only", role="status")  # each step would be announced else
        await self._show_job(job)
        asked = self._tab = self.query("tab", FIRST)
        if asked == "metrics" or (asked == FIRST and not (job["evaluation"] or {}).get("headline")):
            request_charts_early()
        self._asked_more = asked if asked in MORE else ""
        labels = {name: label for name, (label, _) in PANELS.items()} | {REST: "More"}
        first = tabs("Details of the job", labels, self._open, REST if asked in MORE else asked)
        # What is there at once is a part of the page; else it follows while the browser loads the page.
        await asyncio.wait({background_tasks.create(first, name="first panel of a job")}, timeout=AT_ONCE_SECONDS)
        refresh_live(self, self._refresh, self._job_id)

    def _open(self, tab: str) -> Awaitable[None]:
        if tab == REST:
            labels = {name: label for name, (label, _) in MORE.items()}
            opened: Awaitable[None] = tabs("More about the job", labels, self._open, self._asked_more)
            return opened
        if tab != self._tab:  # else the address keeps the part of the page that it names
            self._tab = tab
            set_query(f"/jobs/{self._job_id}", tab="" if tab == FIRST else tab)
        with box("t-stack") as self._body:
            waiting = busy("Loading ...")
            self._panel = (PANELS | MORE)[tab][1](self, self._job)
        return self._fill(self._panel, self._body, waiting)

    async def _fill(self, panel: Panel, body: TextElement, waiting: TextElement) -> None:
        try:
            with body:
                await panel.refresh(self._job)
        except ApiError as error:
            if panel is self._panel:
                with body:
                    error_note(error)
        if not waiting.is_deleted:  # another tab was opened meanwhile
            waiting.delete()

    async def _refresh(self) -> None:
        job = await self.api.get(self._path)
        if job != self._job:
            await self._show_job(job)
        with self._body:
            await self._panel.refresh(job)

    async def _show_job(self, job: dict[str, Any]) -> None:
        """The last event of a job that is paused or queued again has the reason, unless a request stopped it."""
        self._job, self._interruption = job, None
        if job["status"] == "paused" or (job["status"] == "queued" and job["attempts"]):
            last = (await self.api.get(f"{self._path}/events", limit=1, type="message"))["data"]
            stopped = [one for one in last if one["data"].get("reason") not in (None, "paused")]
            self._interruption = stopped[0]["message"] if stopped else None
        await self._curves.load([job])
        self._show_head()

    def _show_head(self) -> None:
        self._show_title()
        self._announced.set_text(wording.label(self._job))
        with refilled(self._summary):
            headline = (self._job["evaluation"] or {}).get("headline")
            if headline:
                tag("p", headline["text"], "t-headline")
            tag("p", wording.sentence(self._job), "t-muted" if headline else "t-strong")
            fraction = wording.fraction_done(self._job)
            if fraction is not None and self._job["status"] in wording.UNFINISHED:
                progress_bar("Progress", fraction)
            facts(self._figures(), "t-figures")
        with refilled(self._details):
            facts(self._facts())
        with refilled(self._state):
            self._show_failure()
            if self._interruption:
                note("Why it was interrupted", self._interruption, "warn")
            for warning in self._job["warnings"]:
                note("Warning", warning["message"], "warn")

    def _show_title(self) -> None:
        """Build it only when it changes: a refresh must not take the focus from a button."""
        job = self._job
        offered = offered_actions(job) if self.may("jobs:write") else []
        state = (wording.label(job), offered, bool(job["adapter"]))
        if state == self._title_state:
            return
        self._title_state = state
        with refilled(self._title):
            self._show_name_and_actions(offered)
            self._show_origin()

    def _show_name_and_actions(self, offered: list[str]) -> None:
        job = self._job
        with box("t-title"):
            with tag("h1"):
                tag("bdi", wording.name(job) if job["user_provided_suffix"] else job["id"])
                pill(**wording.status(job))
            with box("t-actions"):
                for name in offered:
                    label, _, classes = ACTIONS[name]
                    button(label, partial(self._press, name), classes)
                if job["adapter"]:
                    add_actions(self, job)
                if self.may("jobs:write"):
                    link("Clone", f"/jobs/new?clone={job['id']}", "t-button")
                    link("Train a variant", f"/jobs/variants?job={job['id']}", "t-button")
                if job["adapter"]:
                    link("Adapter", f"/adapters/{job['id']}", "t-button")
                if self.may("jobs:write"):
                    add_job_buttons(self, job, self._head)

    def _show_origin(self) -> None:
        job = self._job
        with box("t-row t-muted"):
            if job["user_provided_suffix"]:  # else the id is the title
                tag("span", job["id"], "t-mono t-wrap")
            tag("bdi", job["model"])
            if job["model_alias"]:
                tag("bdi", f"requested as {job['model_alias']}")
            wording.link_files(job)
            if job["cloned_from"]:
                link("Cloned from", f"/jobs/{job['cloned_from']}")
            if job["group"]:
                link("Compare its group", f"/jobs/compare?group={job['group']}")

    def _figures(self) -> dict[str, str | None]:
        """The few numbers that matter: the result, the time, the loss, and what it cost."""
        job, curve = self._job, self._curves.of(self._job)
        remaining, best = wording.remaining_seconds(job), curve["best_valid_loss"]
        return {
            "Score": wording.result(job)["text"] if (job["evaluation"] or {}).get("headline") else None,
            "Remaining": None if remaining is None else duration(remaining),
            "Training time": duration(training_seconds(job)) if remaining is None and job["started_at"] else None,
            "Train loss": self._curves.last_train_loss(job) if best is None and curve["train_losses"] else None,
            "Best validation loss": None if best is None else loss(best),
            "Trained tokens": count(job["trained_tokens"]) if job["trained_tokens"] else None,
        }

    def _facts(self) -> dict[str, str | None]:
        job, progress = self._job, self._job["progress"] or {}
        return {
            "Progress": wording.steps(job),
            "Speed": per_second(progress.get("tokens_per_second")) if job["status"] == "running" else None,
            "Training time": duration(training_seconds(job)) if job["started_at"] else None,
            "Train loss": self._curves.last_train_loss(job),
            "Training attempts": count(job["attempts"]),
            "Priority": str(job["priority"]) if job["priority"] else None,
            "Created": moment(job["created_at"]),
            "Ended": moment(job["finished_at"]) if job["finished_at"] else None,
        }

    def _show_failure(self) -> None:
        error = self._job["error"]
        if error is None:
            return
        with note("Why it failed", error["message"], "bad", role="alert"):
            if error["cause"]:
                prose(error["cause"])
            if remedy := wording.remedy(error):
                tag("div", "What to do", "t-strong")
                tag("p", remedy)
            with box("t-actions"):
                label = "Create a repaired job" if error["code"] in job_form.REPAIRED_ERRORS else "Create it again"
                if self.may("jobs:write"):
                    link(label, f"/jobs/new?repair={self._job_id}", "t-button t-primary")
                if error["param"] in ("training_file", "validation_file"):
                    link("Report on the file", f"/datasets/{self._job[error['param']]}", "t-button")

    async def _press(self, name: str) -> None:
        if name != "cancel":
            await self._perform(name)
            return
        with self._head:  # not where the button is, which the next change may replace
            ask(CANCEL, "Cancel job", partial(self._perform, name))

    async def _perform(self, name: str) -> None:
        await self._show_job(await self.api.post(f"{self._path}/{name}"))
