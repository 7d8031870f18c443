"""The list of jobs: filters, search, order, selection and page are in the URL; it updates by itself."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from app.domain.jobs.states import training_seconds
from app.web.components.data_table import DataTable, Row, column, sparkline
from app.web.components.elements import busy, button, link, note, tag
from app.web.components.forms import filter_select, filter_text
from app.web.formatting import age, clean, counted, duration, loss, moment
from app.web.frame import View, refresh_live, screen, set_query
from app.web.pages.jobs import first_job, wording
from app.web.pages.jobs.curves import Curves
from app.web.pages.jobs.metrics_chart import request_charts_early

PAGE_JOBS = 50
MAX_COMPARED = 5
STATUS_OPTIONS = {
    "": "All statuses",
    "validating_files,queued,running,paused": "Unfinished",
    "running": "Training",
    "queued": "Queued",
    "succeeded": "Succeeded",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "paused": "Paused",
}
COLUMNS = (
    column("name", "Job", lead=True, sortable=True),
    column("status", "Status", sortable=True),
    column("model", "Base model and data", sortable=True),
    column("progress", "Progress", sortable=True),
    column("spark", "Loss"),
    column("train_loss", "Train loss", "number", sortable=True),
    column("valid_loss", "Best valid. loss", "number", sortable=True),
    column("time", "Time", "number", sortable=True),
    column("created", "Created", "number", sortable=True),
)
ORDERS = {one["key"]: one["key"] for one in COLUMNS if one["sortable"]} | {"time": "duration", "created": "created_at"}
NEWEST_FIRST = "-created"

Json = dict[str, Any]


@screen("/jobs", "Jobs", "jobs")
async def build(view: View) -> None:
    await JobsPage(view).build()


class JobsPage:
    def __init__(self, view: View) -> None:
        self._view = view
        asked = view.query("sort", NEWEST_FIRST)
        self._sort = asked if asked.removeprefix("-") in ORDERS else NEWEST_FIRST
        self._after = view.query("after")
        self._selected = [one for one in view.query("select").split(",") if one][:MAX_COMPARED]
        self._curves: Curves = view.session.kept.setdefault("curves", Curves(view.api))
        self._jobs: list[Json] = []
        self._requested = 0  # the number of the latest request of the list
        self._empty_state = ""

    async def build(self) -> None:
        view = self._view
        with tag("div", classes="t-title"):
            tag("h1", "Jobs")
            if view.may("jobs:write"):
                link("New job", "/jobs/new", "t-button t-primary")
        with tag("div", classes="t-filters", role="search"):
            self._search = filter_text("Search name, id, model, file", view.query("q"), self._change)
            self._status = filter_select("Status", STATUS_OPTIONS, view.query("status"), self._change)
            self._waiting = tag("div")
        self._message = tag("div")
        self._table = DataTable("Jobs", COLUMNS).classes("t-fit")
        self._table.on_sort(self._toggle_sort)
        self._table.on_select(self._select)
        self._compare = link("Compare", "#", "t-button t-primary t-stuck")
        self._footer = tag("div", classes="t-row")
        await self.refresh()
        request_charts_early(is_needed_now=False)  # for the page of a job
        ui.timer(0.05, self._load_curves, once=True)  # after the page is shown, and not at all if it was left before
        refresh_live(view, self._refresh_all)

    async def refresh(self) -> None:
        self._requested += 1
        number = self._requested
        page = await self._view.api.get(
            "fine_tuning/jobs",
            limit=PAGE_JOBS,
            after=self._after or None,
            status=self._status.value or None,
            search=self._search.value.strip() or None,
            order="desc" if self._sort.startswith("-") else "asc",
            order_by=ORDERS[self._sort.removeprefix("-")],
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
        self._table.set_sort(self._sort)
        self._table.set_selected(self._selected)
        self._table.set_rows([self._row(job) for job in self._jobs])
        self._table.set_visibility(bool(self._jobs))
        self._compare.set_visibility(len(self._selected) > 1)
        self._compare.set_text(f"Compare {len(self._selected)} jobs")
        self._compare.props["href"] = f"/jobs/compare?jobs={','.join(self._selected)}"

    def _row(self, job: Json) -> Row:
        curve = self._curves.of(job)
        filename = self._curves.filename(job)
        job_name = wording.name(job)
        why = wording.waiting(job) if job["status"] == "queued" else wording.failure(job)
        return {
            "id": job["id"],
            "label": job_name,
            "name": {"text": job_name, "href": f"/jobs/{job['id']}", "sub": wording.short_id(job["id"])},
            "status": {"text": wording.label(job), "tone": wording.TONES[job["status"]], "sub": why},
            "model": {"text": clean(job["model"], 80), "sub": clean(filename, 80) if filename else "…"},
            "progress": _progress(job),
            "spark": sparkline(curve.train_losses, f"Train loss of {job_name}") if curve else None,
            "train_loss": loss(curve.last_train_loss) if curve else "–",
            "valid_loss": loss(curve.best_valid_loss) if curve else "–",
            "time": _time(job),
            "created": {"text": age(job["created_at"]), "title": moment(job["created_at"])},
        }

    async def _show_footer(self, page: Json) -> None:
        self._footer.clear()
        await self._show_empty_state()
        if not self._jobs:
            return
        with self._footer:
            tag("span", f"{counted(len(self._jobs), 'job')} shown", "t-muted", role="status")
            if len(self._jobs) > 1 and not self._selected:
                tag("span", f"Select 2 to {MAX_COMPARED} jobs to compare them.", "t-muted")
            if self._after:
                button("First page", lambda: self._turn(""))
            if page["has_more"]:
                button("Next page", lambda: self._turn(self._jobs[-1]["id"]))

    async def _show_empty_state(self) -> None:
        """Build it only when it changes: a refresh must not take the selected tab and the focus away."""
        is_filtered = bool(self._search.value.strip() or self._status.value or self._after)
        state = "" if self._jobs else "filtered" if is_filtered else "first"
        if state == self._empty_state:
            return
        model = await self._first_model() if state == "first" else ""
        self._empty_state = state
        self._message.clear()
        with self._message:
            if state == "filtered":
                note("No job matches", "Change the search or the status filter.")
                button("Show all jobs", lambda: ui.navigate.to("/jobs"))
            elif state == "first":
                first_job.show(self._view.settings.public_api_url, model)

    async def _first_model(self) -> str:
        models = await self._view.api.get("models")
        names = [model["id"] for model in models["data"] if not model["id"].startswith("ft:")]
        return clean(names[0], 80) if names else "MODEL"

    async def _turn(self, after: str) -> None:
        self._after = after
        await self._reload()

    async def _change(self) -> None:
        self._after = ""
        await self._reload()

    async def _toggle_sort(self, column: str) -> None:
        self._sort = f"-{column}" if self._sort == column else column
        await self._change()

    async def _reload(self) -> None:
        self._write_url()
        with self._waiting:
            busy("Loading ...")
        try:
            await self.refresh()
        finally:
            self._waiting.clear()
        await self._load_curves()

    def _select(self, job_id: str, is_selected: bool) -> None:
        if is_selected and len(self._selected) >= MAX_COMPARED:
            self._table.deselect(job_id)
            ui.notify(f"Up to {MAX_COMPARED} jobs can be compared: take one out of the selection first.")
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


def _progress(job: Json) -> Row:
    fraction = wording.fraction_done(job)
    return {"text": wording.steps(job)} if fraction is None else {"text": wording.steps(job), "progress": fraction}


def _time(job: Json) -> Row:
    remaining = wording.remaining_seconds(job)
    return {
        "text": duration(training_seconds(job)),
        "title": "training time, without pauses and waits",
        "sub": f"{duration(remaining)} left" if remaining is not None else None,
    }
