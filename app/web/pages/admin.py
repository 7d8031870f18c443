"""For administrators: projects with their storage and limits, base models, the jobs of all projects that failed."""

from __future__ import annotations

from functools import partial

from app.domain.error_text.json_text import counted
from app.web.api_client import ApiClient, ApiError, Json
from app.web.components.data_table import (
    CREATED,
    Cell,
    TableColumn,
    ago,
    brief,
    lead_column,
    number_column,
    show_section,
    state,
    text_column,
    titled_table,
    wide_column,
)
from app.web.components.elements import card, error_note, facts, link, note, prose, tag
from app.web.formatting import age, count, duration, size
from app.web.frame import View, screen
from app.web.pages.jobs import wording
from app.web.pages.project import show_audit

MAX_PROJECTS = 200
MAX_FAILED = 50
NO_MODEL = partial(note, "No base model", "Add one: a directory on the server, or a model of a hub.", "warn")


@screen("/admin", "Admin")
class AdminPage(View):
    async def build(self) -> None:
        tag("h1", "Admin")
        if not self.session.is_admin:
            note("Only for administrators", "Sign in with a key that has the scope admin.", "warn")
            return
        projects = await projects_of(self.api)
        await _show_status(self, projects)
        titled_table("Projects", PROJECT_COLUMNS, projects)
        if len(projects) == MAX_PROJECTS:
            prose(f"The {MAX_PROJECTS} newest projects; all: `tunery projects list`", "t-muted")
        await show_section("Base models", self.api.base_models(), MODEL_COLUMNS, NO_MODEL)
        link("Add a base model; which cards train it", "/admin/models", "t-button")
        failed = self.api.items("organization/jobs", MAX_FAILED, status="failed")
        await show_section("Failed jobs", failed, _failed_columns(projects, self.session.project["id"]))
        await show_audit(self, None)


async def _show_status(view: View, projects: list[Json]) -> None:
    """What is wrong with the service and what to do, and how full it is."""
    try:
        status = await view.api.get("organization/status")
    except ApiError as error:
        error_note(error, "The status cannot be shown")
        return
    if status["healthy"]:
        warnings = len(status["problems"])
        title = f"The service is healthy, with {counted(warnings, 'warning')}" if warnings else "The service is healthy"
        note(title, "Every required check of the last seconds passed.", "ok")
    for problem in status["problems"]:
        tone = "bad" if problem["level"] == "problem" else "warn"
        note(problem["message"], problem["remedy"], tone)
    storage, backup = status["storage"], status["last_backup"]
    disk = storage["disk_bytes"]
    free = f"{size(storage['disk_free_bytes'])} of {size(disk)}" if disk else "the data directory cannot be read"
    stored = f"Stored by {'all' if len(projects) < MAX_PROJECTS else 'the listed'} projects"
    with card("Service"):
        facts(
            {
                stored: size(sum(one["usage"]["stored_bytes"] for one in projects)),
                "Free disk space": free,
                "Workers": counted(len(status["workers"]), "worker"),
                "Queued": counted(status["queue"]["queued"], "job"),
                "Running": counted(status["queue"]["running"], "job"),
                "Failed within a day": counted(status["failed_jobs"]["total"], "job"),
                "Pending deliveries": count(status["deliveries"]["pending"]),
                "Last backup": age(backup["finished_at"]) if backup else "none",
            }
        )
    titled_table("Checks", CHECK_COLUMNS, status["checks"], key="name")
    if status["deliveries"]["failed"]:
        titled_table("Failed deliveries", DELIVERY_COLUMNS, status["deliveries"]["failed"])


async def projects_of(api: ApiClient) -> list[Json]:
    """All projects with their usage, archived ones among them, the largest storage first."""
    wanted = {"include_archived": "true", "include_usage": "true"}
    found = await api.items("organization/projects", MAX_PROJECTS, **wanted)
    return sorted(found, key=lambda project: -int(project["usage"]["stored_bytes"]))


def _failed_columns(projects: list[Json], own_project_id: str) -> tuple[TableColumn, ...]:
    names = {project["id"]: project["name"] for project in projects}

    def name(job: Json) -> Cell:
        page = f"/jobs/{job['id']}" if job["project_id"] == own_project_id else None  # a key reads its own project's
        return wording.job_cell(job) | {"href": page, "sub": job["id"]}

    return (
        lead_column("Failed job", "", name),
        text_column("Project", "project_id", lambda project_id: brief(names.get(project_id, project_id))),
        wide_column("Cause", "", lambda job: wording.failure(job) or "–", sub="error.message"),
        number_column("Time", "finished_at", ago),
    )


def _result(check: Json) -> Cell:
    if check["ok"]:
        return {"text": "ok", "tone": "ok"}
    return {"text": "failed", "tone": "bad" if check["required"] else "warn"}


def _jobs(usage: Json) -> str:
    return f"{count(usage['queued_jobs'])}, {count(usage['running_jobs'])}"


CHECK_COLUMNS = (
    lead_column("Check", "name", lambda name: name.replace("_", " ")),
    text_column("Result", "", _result),
    wide_column("Observed", "observed"),
)
DELIVERY_COLUMNS = (
    lead_column("Target", "target", sub="model"),
    text_column("Project", "project"),
    text_column("Cause", "error"),
    number_column("Time", "failed_at", ago),
)
PROJECT_COLUMNS = (
    lead_column("Project", "name", sub="id"),
    text_column("Status", "status", state({"active": "ok"})),
    number_column("Stored", "usage.stored_bytes", size),
    number_column("Queued, running", "usage", _jobs),
    number_column("Compute time this month", "usage.gpu_seconds_this_month", duration),
    number_column("Weight", "share_weight", "{:g}".format),
    CREATED,
)
MODEL_COLUMNS = (
    lead_column("Base model", "id"),
    number_column("Context length", "max_context_length", lambda tokens: f"{count(tokens)} tokens"),
    number_column("Highest rank", "lora_limits.max_r", lambda rank: str(rank or "–")),
    number_column("Registered", "created", ago),
)
