"""The queue and the workers: what is alive, what runs, who is next and why."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from app.web.components.data_table import DataTable, column
from app.web.components.elements import card, facts, note, tag
from app.web.formatting import age, clean, count, counted, duration, moment, size
from app.web.frame import View, refresh_live, screen
from app.web.pages.jobs import wording

MAX_WAITING = 100
MAX_PROJECTS = 100
FEW = 5
MAX_MODELS = 3  # named in the row of a worker
REFRESH_SECONDS = 5.0
WORKER_COLUMNS = (
    column("name", "Worker", lead=True),
    column("status", "Status"),
    column("device", "Device"),
    column("memory", "Memory", "number"),
    column("job", "Job"),
    column("models", "Models"),
    column("seen", "Last heartbeat", "number"),
)
RUNNING_COLUMNS = (
    column("job", "Running job", lead=True),
    column("model", "Base model"),
    column("phase", "Phase"),
    column("started", "Started", "number"),
    column("finish", "Expected end", "number"),
)
WAITING_COLUMNS = (
    column("position", "Position", "number"),
    column("job", "Queued job", lead=True),
    column("model", "Base model"),
    column("start", "Expected start", "number"),
    column("time", "Planned time", "number"),
    column("reason", "Waits for", "wide"),
    column("age", "Created", "number"),
)
EVALUATION_COLUMNS = (
    column("job", "Evaluation of", lead=True),
    column("model", "Model"),
    column("status", "Status"),
    column("answers", "Answers", "number"),
    column("time", "Estimated time", "number"),
    column("age", "Created", "number"),
)

Json = dict[str, Any]


@dataclass
class JobCells:
    """What stands for a job: an own one has its name and a link, another one its short id and its project."""

    names: dict[str, str] = field(default_factory=dict)  # of own jobs, which keep their names
    projects: dict[str, str] = field(default_factory=dict)  # by job

    def of(self, job_id: str, note: str | None = None) -> Json:
        short_id = wording.short_id(job_id)
        if job_id in self.names:
            sub = " · ".join(part for part in (short_id, note) if part)
            return {"text": self.names[job_id], "href": f"/jobs/{job_id}", "sub": sub}
        owner = f"project {self.projects[job_id]}" if job_id in self.projects else None
        return {"text": short_id, "sub": " · ".join(part for part in (owner, note) if part)}


@screen("/queue", "Queue and workers", "queue")
async def build(view: View) -> None:
    await QueuePage(view).build()


class QueuePage:
    def __init__(self, view: View) -> None:
        self._view = view
        self._cells = JobCells()
        self._project_names = {view.session.project["id"]: clean(view.session.project["name"], 80)}

    async def build(self) -> None:
        if self._view.session.is_admin:
            projects = await self._view.api.items("organization/projects", MAX_PROJECTS)
            self._project_names |= {project["id"]: clean(project["name"], 80) for project in projects}
        tag("h1", "Queue and workers")
        self._head = tag("div", classes="t-stack")
        tag("h2", "Workers")
        self._workers = DataTable("Workers", WORKER_COLUMNS)
        tag("h2", "Running")
        self._running = DataTable("Running jobs", RUNNING_COLUMNS)
        tag("h2", "Waiting")
        self._waiting = DataTable("Waiting jobs", WAITING_COLUMNS)
        self._more = tag("div")
        self._evaluations = tag("div")
        self._shares = tag("div")
        await self.refresh()
        refresh_live(self._view, self.refresh, interval_seconds=REFRESH_SECONDS)

    async def refresh(self) -> None:
        queue = await self._view.api.get("queue", limit=MAX_WAITING)
        workers = await self._view.api.get("workers")
        await self._load_names(queue)
        cells = self._cells
        self._show_head(queue)
        evaluated = {one["id"]: one["fine_tuning_job_id"] for one in queue["evaluations"]}
        self._workers.set_rows([_worker_row(worker, cells, evaluated) for worker in workers["data"]])
        self._running.set_rows([_running_row(job, cells) for job in queue["running"]])
        self._waiting.set_rows([_waiting_row(job, cells) for job in queue["waiting"]])
        self._show_more(queue["has_more"])
        self._show_evaluations(queue["evaluations"])
        self._show_shares(queue["projects"])

    async def _load_names(self, queue: Json) -> None:
        """The projects of others' jobs, and the names of own ones; of many unknown, the oldest by one request."""
        own_id, api, names = self._view.session.project["id"], self._view.api, self._cells.names
        shown = [(one["id"], one["project_id"]) for one in (*queue["running"], *queue["waiting"])]
        shown += [(one["fine_tuning_job_id"], one["project_id"]) for one in queue["evaluations"]]
        self._cells.projects = {job: self._project_names.get(project, project) for job, project in shown}
        own = {job_id for job_id, project_id in shown if project_id == own_id}
        if len(own - names.keys()) > FEW:
            states = ",".join(wording.UNFINISHED)
            page = await api.get("fine_tuning/jobs", status=states, limit=MAX_WAITING, order="asc")
            names |= {job["id"]: wording.name(job) for job in page["data"]}
        missing = sorted(own - names.keys())
        jobs = await asyncio.gather(*(api.get(f"fine_tuning/jobs/{one}") for one in missing))
        names |= {job["id"]: wording.name(job) for job in jobs}

    def _show_more(self, has_more: bool) -> None:
        self._more.clear()
        if has_more:
            with self._more:
                tag("p", f"The next {MAX_WAITING} jobs are shown; further ones wait behind them.", "t-muted")

    def _show_evaluations(self, evaluations: list[Json]) -> None:
        self._evaluations.clear()
        if evaluations:
            with self._evaluations, tag("div", classes="t-stack"):
                tag("h2", "Evaluations")
                rows = [_evaluation_row(one, self._cells) for one in evaluations]
                DataTable("Evaluations", EVALUATION_COLUMNS, rows)

    def _show_head(self, queue: Json) -> None:
        workers = queue["workers"]
        self._head.clear()
        with self._head:
            if not workers["alive"]:
                note("No training worker is running", "Queued jobs wait until an operator starts one.", "warn")
            with card():
                facts(
                    {
                        "Training workers": f"{workers['busy']} busy of {workers['alive']}",
                        "Running": _both(queue, "running"),
                        "Waiting": _both(queue, "waiting"),
                        "Files being checked": _both(queue, "validating"),
                    }
                )

    def _show_shares(self, projects: list[Json]) -> None:
        self._shares.clear()
        if len(projects) < 2:
            return
        rows = [
            {
                "id": one["project_id"],
                "project": self._project_names.get(one["project_id"], one["project_id"]),
                "used": duration(one["gpu_seconds"]),
                "weight": f"{one['share_weight']:g}",
                "running": count(one["running_jobs"]),
            }
            for one in projects
        ]
        columns = (
            column("project", "Project (next first)", lead=True),
            column("used", "GPU time counted", "number"),
            column("weight", "Weight", "number"),
            column("running", "Running jobs", "number"),
        )
        with self._shares, tag("div", classes="t-stack"):
            tag("h2", "Fair shares")
            DataTable("Fair shares", columns, rows)


def _both(queue: Json, state: str) -> str:
    own, others = queue["own"][state], queue["others"][state]
    return f"{counted(own, 'job')}, {count(others)} of other projects" if others else counted(own, "job")


def _worker_row(worker: Json, cells: JobCells, evaluated: dict[str, str]) -> Json:
    """`evaluated` are the jobs of the evaluations in the queue."""
    device, job_id = worker["device"], worker["job_id"]
    work = cells.of(job_id) if job_id else "–"
    if evaluation_id := worker["evaluation_id"]:
        work = cells.of(evaluated[evaluation_id], "evaluation") if evaluation_id in evaluated else "evaluation"
    name = clean(worker["name"] or worker["id"], 80)
    kind = f"{device['count']} × {device['name']}" if device["count"] > 1 else device["name"]
    return {
        "id": worker["id"],
        "label": name,
        "name": {"text": name, "sub": "trains" if worker["queue"] == "gpu" else "checks files"},
        "status": {"text": worker["status"], "tone": "run" if worker["status"] == "busy" else "ok"},
        "device": clean(kind, 80) or "–",
        "memory": size(device["memory_bytes"]),
        "job": work,
        "models": _models(worker["models"]),
        "seen": {"text": age(worker["seen_at"]), "title": moment(worker["seen_at"])},
    }


def _models(names: list[str]) -> Json:
    """The first ones; a table of many workers with many models has no room for all."""
    shown = clean(", ".join(names[:MAX_MODELS]), 200) or "–"
    more = f", and {len(names) - MAX_MODELS} more" if len(names) > MAX_MODELS else ""
    return {"text": shown + more, "title": clean(", ".join(names), 4_000)}


def _running_row(job: Json, cells: JobCells) -> Json:
    return {
        "id": job["id"],
        "job": cells.of(job["id"], "urgent" if job["urgent"] else None),
        "model": clean(job["model"], 80),
        "phase": wording.PHASES.get(job["phase"], clean(job["phase"], 40)) or "–",
        "started": {"text": age(job["started_at"]), "title": moment(job["started_at"])},
        "finish": _in(job["expected_finish"]),
    }


def _waiting_row(job: Json, cells: JobCells) -> Json:
    reason = job["waiting_for"] or ("disk space" if job["phase"] == "waiting_for_storage" else "its turn")
    notes = [f"priority {job['priority']}"] if job["priority"] else []
    notes += ["urgent"] if job["urgent"] else []
    notes += [f"needs {', '.join(job['worker_labels'])}"] if job["worker_labels"] else []
    return {
        "id": job["id"],
        "position": str(job["position"]),
        "job": cells.of(job["id"], clean(", ".join(notes), 120)),
        "model": clean(job["model"], 80),
        "start": _in(job["expected_start"]),
        "time": duration(job["planned_seconds"]),
        "reason": clean(reason, 300),
        "age": {"text": age(job["created_at"]), "title": moment(job["created_at"])},
    }


def _evaluation_row(evaluation: Json, cells: JobCells) -> Json:
    answers = f"{count(evaluation['answers'])} of {count(evaluation['total_answers'])}"
    return {
        "id": evaluation["id"],
        "job": cells.of(evaluation["fine_tuning_job_id"]),
        "model": clean(evaluation["model"], 160),
        "status": {"text": evaluation["status"], "tone": "run" if evaluation["status"] == "running" else "wait"},
        "answers": answers if evaluation["total_answers"] is not None else "–",
        "time": duration(evaluation["estimated_seconds"]),
        "age": {"text": age(evaluation["created_at"]), "title": moment(evaluation["created_at"])},
    }


def _in(unix_seconds: float | None) -> str:
    if unix_seconds is None:
        return "–"
    seconds = unix_seconds - time.time()
    return f"in {duration(seconds)}" if seconds > 5 else "soon"
