"""The queue and the workers: what is alive, what runs, who is next and why."""

from __future__ import annotations

import asyncio

from app.domain.error_text.json_text import counted
from app.web.api_client import Json
from app.web.components.data_table import (
    CREATED,
    ago,
    brief,
    lead_column,
    number_column,
    state,
    text_column,
    titled_table,
    wide_column,
)
from app.web.components.elements import box, card, facts, note, refilled, tag
from app.web.formatting import count, duration, size, until
from app.web.frame import View, refresh_live, screen
from app.web.pages.jobs import wording

MAX_WAITING = 100
MAX_PROJECTS = 100
FEW = 5
MAX_MODELS = 3  # named in the row of a worker
REFRESH_SECONDS = 5.0


@screen("/queue", "Queue and workers")
class QueuePage(View):
    async def build(self) -> None:
        self._names: dict[str, str] = {}  # of own jobs, which keep their names
        projects = [self.session.project]
        if self.session.is_admin:
            projects += await self.api.items("organization/projects", MAX_PROJECTS)
        self._project_names = {project["id"]: project["name"] for project in projects}
        tag("h1", "Queue and workers")
        self._head = box("t-stack")
        self._workers = titled_table(
            "Workers",
            (
                lead_column("Worker", "", _worker_name),
                text_column("Status", "status", state({"busy": "run", "out_of_service": "bad"}, "ok")),
                text_column("Device", "device", _device),
                number_column("Memory", "device.memory_bytes", size),
                text_column("Job", "", self._work),
                text_column("Models", "models", _models),
                number_column("Last heartbeat", "seen_at", ago),
            ),
        )
        self._running = titled_table(
            "Running jobs",
            (
                lead_column("Running job", "", lambda job: self._job(job["id"], "urgent" if job["urgent"] else "")),
                text_column("Base model", "model"),
                text_column("Phase", "phase", lambda phase: wording.PHASES.get(phase, brief(phase))),
                number_column("Started", "started_at", ago),
                number_column("Expected end", "expected_finish", until),
            ),
        )
        self._waiting = titled_table(
            "Waiting jobs",
            (
                number_column("Position", "position", str),
                lead_column("Queued job", "", lambda job: self._job(job["id"], _notes(job))),
                text_column("Base model", "model"),
                number_column("Expected start", "expected_start", until),
                number_column("Planned time", "planned_seconds", duration),
                wide_column("Waits for", "", wording.reason),
                CREATED,
            ),
        )
        self._rest = box("t-stack")
        await self.refresh()
        refresh_live(self, self.refresh, interval_seconds=REFRESH_SECONDS)

    async def refresh(self) -> None:
        queue = await self.api.get("queue", limit=MAX_WAITING)
        workers = await self.api.get("workers")
        evaluations = queue["evaluations"]
        listed = [(one["id"], one["project_id"]) for one in (*queue["running"], *queue["waiting"])]
        self._project_ids = dict(listed + [(one["fine_tuning_job_id"], one["project_id"]) for one in evaluations])
        await self._load_names()
        self._evaluated = {one["id"]: one["fine_tuning_job_id"] for one in evaluations}
        self._show_head(queue)
        self._workers.show(workers["data"])
        self._running.show(queue["running"])
        self._waiting.show(queue["waiting"])
        with refilled(self._rest):
            if queue["has_more"]:
                tag("p", f"The next {MAX_WAITING} jobs are shown; further ones wait behind them.", "t-muted")
            if evaluations:
                titled_table(
                    "Evaluations",
                    (
                        lead_column("Evaluation of", "fine_tuning_job_id", self._job),
                        text_column("Model", "model"),
                        text_column("Status", "status", state({"running": "run"})),
                        number_column("Answers", "", _answers),
                        number_column("Estimated time", "estimated_seconds", duration),
                        CREATED,
                    ),
                    evaluations,
                )
            if len(queue["projects"]) > 1:
                titled_table(
                    "Fair shares",
                    (
                        lead_column("Project (next first)", "project_id", self._project),
                        number_column("Compute time counted", "gpu_seconds", duration),
                        number_column("Weight", "share_weight", "{:g}".format),
                        number_column("Running jobs", "running_jobs", count),
                    ),
                    queue["projects"],
                    key="project_id",
                )

    def _project(self, project_id: str) -> str:
        return str(self._project_names.get(project_id, project_id))

    def _job(self, job_id: str, note: str = "") -> Json:
        """An own job has a link and, once known, its name; one of another project its short id and the project."""
        short_id, project_id = wording.short_id(job_id), self._project_ids.get(job_id)
        is_own = project_id == self.session.project["id"]
        owner = f"project {self._project(project_id)}" if project_id else ""
        return {
            "text": self._names.get(job_id, short_id),
            "href": f"/jobs/{job_id}" if is_own else None,
            "sub": " · ".join(filter(None, (short_id if is_own else owner, note))),
        }

    def _work(self, worker: Json) -> Json | str:
        if worker["evaluation_id"]:
            job_id = self._evaluated.get(worker["evaluation_id"])
            return self._job(job_id, "evaluation") if job_id else "evaluation"
        return self._job(worker["job_id"]) if worker["job_id"] else "–"

    async def _load_names(self) -> None:
        """The names of own jobs: of the first unknown ones one by one, of many others by one request."""
        own_id = self.session.project["id"]
        unknown = [one for one, owner in self._project_ids.items() if owner == own_id and one not in self._names]
        jobs = await asyncio.gather(*(self.api.get(f"fine_tuning/jobs/{one}") for one in unknown[:FEW]))
        if len(unknown) > FEW:  # the oldest ones; the next refresh has the next few of the others
            states = ",".join(wording.UNFINISHED)
            jobs += await self.api.items("fine_tuning/jobs", MAX_WAITING, status=states, order="asc")
        self._names |= {job["id"]: wording.name(job) for job in jobs}

    def _show_head(self, queue: Json) -> None:
        workers = queue["workers"]
        with refilled(self._head):
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


def _both(queue: Json, state: str) -> str:
    own, others = queue["own"][state], queue["others"][state]
    return f"{counted(own, 'job')}, {count(others)} of other projects" if others else counted(own, "job")


def _worker_name(worker: Json) -> Json:
    name = worker["name"] or worker["id"]
    return {"text": name, "sub": "trains" if worker["queue"] == "gpu" else "checks files"}


def _device(device: Json) -> str:
    return brief(f"{device['count']} × {device['name']}" if device["count"] > 1 else device["name"])


def _models(names: list[str]) -> Json:
    """The first ones; a table of many workers with many models has no room for all."""
    more = ", …" if len(names) > MAX_MODELS else ""
    return {"text": brief(names[:MAX_MODELS]) + more, "title": ", ".join(names)}


def _notes(job: Json) -> str:
    notes = (
        f"priority {job['priority']}" if job["priority"] else "",
        "urgent" if job["urgent"] else "",
        f"needs {', '.join(job['worker_labels'])}" if job["worker_labels"] else "",
    )
    return ", ".join(filter(None, notes))


def _answers(evaluation: Json) -> str:
    done, total = evaluation["answers"], evaluation["total_answers"]
    return "–" if total is None else f"{count(done)} of {count(total)}"
