"""The list of jobs: filters, search, order, selection and page are in the URL; it updates by itself.

The losses are requested after the list itself is shown, and again only if a job has moved on. A session keeps them, so
that a list that is opened again requests only what has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from nicegui import ui

from app.domain.error_text.json_text import counted
from app.domain.jobs.states import training_seconds
from app.web.api_client import ApiClient, ApiError, Json
from app.web.components.data_table import (
    Cell,
    DataTable,
    TableColumn,
    ago,
    lead_column,
    number_column,
    sparkline,
    text_column,
)
from app.web.components.elements import box, busy, button, card, code_block, link, note, refilled, tabs, tag
from app.web.components.forms import filter_select, filter_text
from app.web.formatting import duration, loss
from app.web.frame import View, refresh_live, screen, set_query
from app.web.pages.jobs import wording
from app.web.pages.jobs.compare import MAX_JOBS
from app.web.pages.jobs.metrics import request_charts_early

PAGE_JOBS = 50
STATUSES = ("running", "queued", "succeeded", "failed", "cancelled", "paused")
STATUS_OPTIONS = {"": "All statuses", ",".join(wording.UNFINISHED): "Unfinished"}
STATUS_OPTIONS |= {status: wording.LABELS[status] for status in STATUSES}
ORDERS = ("name", "status", "model", "progress", "train_loss", "valid_loss", "duration", "created_at")  # of the API
NEWEST_FIRST = "-created_at"


INTRODUCTION = (
    "A job fine-tunes a base model on your examples and returns an adapter. Upload a dataset (JSONL or CSV), then "
    "create a job here; or start from a terminal:"
)
CURL = """\
export TUNERY={url} KEY=tnry_...        # this server, and your API key

curl -s $TUNERY/v1/files -H "Authorization: Bearer $KEY" -F purpose=fine-tune -F file=@train.jsonl
curl -s $TUNERY/v1/fine_tuning/jobs -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "training_file": "file-..."}}'"""
PYTHON = """\
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="tnry_...")
with open("train.jsonl", "rb") as content:
    file = client.files.create(file=content, purpose="fine-tune")
job = client.fine_tuning.jobs.create(model="{model}", training_file=file.id)
print(job.id, job.status)"""
CLI = """\
export TUNERY_BASE_URL={url} TUNERY_API_KEY=tnry_...
tunery jobs create --model {model} --training-file train.jsonl --watch"""
POINTS = 40
PARALLEL_REQUESTS = 6  # of file names
MAX_KEPT = 5_000  # curves; one takes about a kilobyte
NO_CURVE: Json = {"train_losses": [], "best_valid_loss": None}


@screen("/jobs", "Jobs")
class JobsPage(View):
    async def build(self) -> None:
        self._curves: Curves = self.session.kept.setdefault("curves", Curves(self.api))
        asked = self.query("sort", NEWEST_FIRST)
        self._sort = asked if asked.removeprefix("-") in ORDERS else NEWEST_FIRST
        self._after = self.query("after")
        self._selected = [one for one in self.query("select").split(",") if one][:MAX_JOBS]
        self._jobs: list[Json] = []
        self._requested = 0  # the number of the latest request of the list
        self._empty_state = ""
        with box("t-title"):
            tag("h1", "Jobs")
            if self.may("jobs:write"):
                link("New job", "/jobs/new", "t-button t-primary")
        with box("t-filters", role="search"):
            self._search = filter_text("Search name, id, model, file", self.query("q"), self._reload)
            self._status = filter_select("Status", STATUS_OPTIONS, self.query("status"), self._reload)
            self._waiting = tag("div")
        self._message = tag("div")
        self._table = DataTable("Jobs", _columns(self._curves)).classes("t-fit")
        self._table.on_event("sort", self._set_sort)
        self._table.on_event("select", self._select)
        self._compare = link("Compare", "#", "t-button t-primary t-stuck")
        self._footer = box("t-row")
        await self.refresh()
        request_charts_early(is_needed_now=False)  # for the page of a job
        ui.timer(0.05, self._load_curves, once=True)  # after the page is shown, and not at all if it was left before
        refresh_live(self, self._refresh_all)

    async def refresh(self) -> None:
        self._requested += 1
        number = self._requested
        page = await self.api.get(
            "fine_tuning/jobs",
            limit=PAGE_JOBS,
            after=self._after or None,
            status=self._status.value or None,
            search=self._search.value.strip() or None,
            order="desc" if self._sort.startswith("-") else "asc",
            order_by=self._sort.removeprefix("-"),
        )
        if number != self._requested:  # a later filter has its own answer
            return
        self._jobs = page["data"]
        self._show()
        await self._show_footer(page)

    async def _refresh_all(self) -> None:
        await self.refresh()
        await self._load_curves()

    async def _load_curves(self) -> None:
        await self._curves.load(self._jobs)
        self._show()

    def _show(self) -> None:
        self._table.show_state(self._sort, self._selected)
        self._table.show(self._jobs)
        self._table.set_visibility(bool(self._jobs))
        self._compare.set_visibility(len(self._selected) > 1)
        self._compare.set_text(f"Compare {len(self._selected)} jobs")
        self._compare.props["href"] = f"/jobs/compare?jobs={','.join(self._selected)}"

    async def _show_footer(self, page: Json) -> None:
        self._footer.clear()
        await self._show_empty_state()
        if not self._jobs:
            return
        with self._footer:
            tag("span", f"{counted(len(self._jobs), 'job')} shown", "t-muted", role="status")
            if len(self._jobs) > 1 and not self._selected:
                tag("span", f"Select 2 to {MAX_JOBS} jobs to compare them.", "t-muted")
            if self._after:
                button("First page", self._reload)
            if page["has_more"]:
                button("Next page", partial(self._reload, self._jobs[-1]["id"]))

    async def _show_empty_state(self) -> None:
        """Build it only when it changes: a refresh must not take the selected tab and the focus away."""
        is_filtered = bool(self._search.value.strip() or self._status.value or self._after)
        state = "" if self._jobs else "filtered" if is_filtered else "first"
        if state == self._empty_state:
            return
        models = await self.api.base_models() if state == "first" else []
        self._empty_state = state
        with refilled(self._message):
            if state == "filtered":
                note("No job matches", "Change the search or the status filter.")
                button("Show all jobs", lambda: ui.navigate.to("/jobs"))
            elif state == "first":
                _show_first_job(self.settings.public_api_url, models[0]["id"] if models else "MODEL")

    async def _set_sort(self, sort: str) -> None:
        self._sort = sort
        await self._reload()

    async def _reload(self, after: str = "") -> None:
        self._after = after
        self._write_url()
        with self._waiting:
            busy("Loading ...")
        try:
            await self.refresh()
        finally:
            self._waiting.clear()
        await self._load_curves()

    def _select(self, job_id: str, is_selected: bool) -> None:
        if is_selected and len(self._selected) >= MAX_JOBS:
            self._table.deselect(job_id)
            ui.notify(f"Up to {MAX_JOBS} jobs can be compared: take one out of the selection first.")
        elif is_selected:
            self._selected.append(job_id)
        elif job_id in self._selected:
            self._selected.remove(job_id)
        self._show()
        self._write_url()

    def _write_url(self) -> None:
        set_query(
            "/jobs",
            q=self._search.value.strip(),
            status=self._status.value,
            sort="" if self._sort == NEWEST_FIRST else self._sort,
            after=self._after,
            select=",".join(self._selected),
        )


def _columns(curves: Curves) -> tuple[TableColumn, ...]:
    """The keys of the sortable ones are those of ORDERS."""

    def spark(job: Json) -> Cell:
        return sparkline(curves.of(job)["train_losses"], f"Train loss of {wording.name(job)}")

    def model(job: Json) -> Cell:
        return {"text": job["model"], "sub": curves.filename(job)}

    return (
        lead_column("Job", "", wording.job_cell, sort="name"),
        text_column("Status", "", _status, sort="status"),
        text_column("Base model and data", "", model, sort="model"),
        text_column("Progress", "", _progress, sort="progress"),
        text_column("Loss", "", spark),
        number_column("Train loss", "", curves.last_train_loss, sort="train_loss"),
        number_column("Best valid. loss", "", lambda job: loss(curves.of(job)["best_valid_loss"]), sort="valid_loss"),
        text_column("Evaluation", "", wording.result),
        number_column("Time", "", _time, sort="duration"),
        number_column("Created", "created_at", ago, sort="created_at"),
    )


def _status(job: Json) -> Cell:
    why = wording.waiting(job) if job["status"] == "queued" else wording.failure(job)
    return wording.status(job) | {"sub": why}


def _progress(job: Json) -> Cell:
    fraction = wording.fraction_done(job)
    return {"text": wording.steps(job)} if fraction is None else {"text": wording.steps(job), "progress": fraction}


def _time(job: Json) -> Cell:
    remaining = wording.remaining_seconds(job)
    return {
        "text": duration(training_seconds(job)),
        "title": "training time, without pauses and waits",
        "sub": f"{duration(remaining)} left" if remaining is not None else None,
    }


def _show_first_job(url: str, model: str) -> None:
    """The empty state of the list of jobs."""
    with card("No jobs yet"):
        tag("p", INTRODUCTION, "t-lede")
        with box("t-actions"):
            link("Upload a dataset", "/datasets", "t-button t-primary")
            link("New job", "/jobs/new", "t-button")
        texts = {"curl": CURL, "Python": PYTHON, "Command line": CLI}
        labels = {name: name for name in texts}
        tabs("The first job", labels, lambda name: code_block(texts[name].format(url=url, model=model)))


class Curves:
    """The loss curves of jobs, and the names of their training files."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._curves: dict[str, tuple[object, Json]] = {}  # by job: its state as of the request
        self._filenames: dict[str, str] = {}
        self._limit = asyncio.Semaphore(PARALLEL_REQUESTS)

    def of(self, job: Json) -> Json:
        """An empty one until it is there."""
        return self._curves.get(job["id"], (None, NO_CURVE))[1]

    def last_train_loss(self, job: Json) -> str:
        return loss(next(reversed(self.of(job)["train_losses"]), None))

    def filename(self, job: Json) -> str:
        return self._filenames.get(job["training_file"], "…")

    async def load(self, jobs: list[Json]) -> None:
        """Request what is missing or outdated. A failed request leaves its value unknown."""
        if len(self._curves) > MAX_KEPT:
            self._curves.clear()
            self._filenames.clear()
        states = {job["id"]: (job["status"], job["trained_steps"]) for job in jobs if job["trained_steps"]}
        stale = {one: state for one, state in states.items() if self._curves.get(one, (None,))[0] != state}
        unnamed = {job["training_file"] for job in jobs} - self._filenames.keys()
        await asyncio.gather(self._load_curves(stale), *map(self._load_filename, unnamed))

    async def _load_curves(self, states: Mapping[str, object]) -> None:
        if not states:
            return
        with suppress(ApiError):
            found = await self._api.get("fine_tuning/loss_curves", jobs=",".join(states), max_points=POINTS)
            curves = zip(states.items(), found["data"], strict=True)
            self._curves |= {job_id: (state, curve) for (job_id, state), curve in curves}

    async def _load_filename(self, file_id: str) -> None:
        async with self._limit:
            try:
                self._filenames[file_id] = (await self._api.get(f"files/{file_id}"))["filename"]
            except ApiError as error:
                if error.status == 404:
                    self._filenames[file_id] = "deleted file"
