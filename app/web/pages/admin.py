"""For administrators: projects with their storage and limits, base models, the jobs of all projects that failed."""

from __future__ import annotations

import asyncio
from typing import Any

from app.web.api_client import ApiError
from app.web.components.data_table import DataTable, column
from app.web.components.elements import card, facts, note, tag
from app.web.formatting import age, clean, count, counted, duration, moment, size
from app.web.frame import View, error_note, screen
from app.web.models import base_models
from app.web.pages.jobs import wording
from app.web.pages.project import show_audit

MAX_PROJECTS = 200
MAX_FAILED = 50
CHECK_COLUMNS = (
    column("name", "Check", lead=True),
    column("state", "Result"),
    column("seen", "Observed", "wide"),
)
DELIVERY_COLUMNS = (
    column("target", "Target", lead=True),
    column("project", "Project"),
    column("error", "Cause"),
    column("time", "Time", "number"),
)
PROJECT_COLUMNS = (
    column("name", "Project", lead=True),
    column("status", "Status"),
    column("stored", "Stored", "number"),
    column("jobs", "Queued, running", "number"),
    column("gpu", "GPU time this month", "number"),
    column("weight", "Weight", "number"),
    column("created", "Created", "number"),
)
MODEL_COLUMNS = (
    column("name", "Base model", lead=True),
    column("context", "Context length", "number"),
    column("rank", "Highest rank", "number"),
    column("created", "Registered", "number"),
)
FAILED_COLUMNS = (
    column("name", "Failed job", lead=True),
    column("project", "Project"),
    column("cause", "Cause", "wide"),
    column("time", "Time", "number"),
)

Json = dict[str, Any]


@screen("/admin", "Admin", "admin")
async def build(view: View) -> None:
    tag("h1", "Admin")
    if not view.session.is_admin:
        note("Only for administrators", "Sign in with a key that has the scope admin.", "warn")
        return
    projects = await _projects(view)
    await _show_status(view, projects)
    tag("h2", "Projects")
    if len(projects) == MAX_PROJECTS:
        tag("p", f"The {MAX_PROJECTS} newest projects; all: tunery projects list", "t-muted")
    DataTable("Projects", PROJECT_COLUMNS, [_project_row(project) for project in projects])
    tag("h2", "Base models")
    models = await base_models(view.api)
    if models:
        DataTable("Base models", MODEL_COLUMNS, [_model_row(model) for model in models])
    else:
        note("No base model", "Register one on the server: tunery models add NAME DIRECTORY", "warn")
    tag("h2", "Failed jobs")
    failed = await view.api.get("organization/jobs", status="failed", limit=MAX_FAILED)
    names = {project["id"]: project["name"] for project in projects}
    DataTable(
        "Failed jobs", FAILED_COLUMNS, [_failed_row(job, names, view.session.project["id"]) for job in failed["data"]]
    )
    await show_audit(view, None)


def _free_space(storage: dict[str, Any]) -> str:
    if storage["disk_bytes"] is None:
        return "the data directory cannot be read"
    return f"{size(storage['disk_free_bytes'])} of {size(storage['disk_bytes'])}"


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
        text = clean(problem["message"], 1_000)
        note(text, clean(problem["remedy"], 1_000).replace("`", ""), "bad" if problem["level"] == "problem" else "warn")
    storage, backup = status["storage"], status["last_backup"]
    stored = f"Stored by {'all' if len(projects) < MAX_PROJECTS else 'the listed'} projects"
    with card("Service"):
        facts(
            {
                stored: size(sum(one["usage"]["stored_bytes"] for one in projects)),
                "Free disk space": _free_space(storage),
                "Workers": counted(len(status["workers"]), "worker"),
                "Queued": counted(status["queue"]["queued"], "job"),
                "Running": counted(status["queue"]["running"], "job"),
                "Failed within a day": counted(status["failed_jobs"]["total"], "job"),
                "Pending deliveries": count(status["deliveries"]["pending"]),
                "Last backup": age(backup["finished_at"]) if backup else "none",
            }
        )
    tag("h2", "Checks")
    DataTable("Checks", CHECK_COLUMNS, [_check_row(check) for check in status["checks"]])
    if status["deliveries"]["failed"]:
        tag("h2", "Failed deliveries")
        rows = [_delivery_row(delivery) for delivery in status["deliveries"]["failed"]]
        DataTable("Failed deliveries", DELIVERY_COLUMNS, rows)


def _delivery_row(delivery: Json) -> Json:
    return {
        "id": delivery["id"],
        "target": {"text": clean(delivery["target"], 80), "sub": clean(delivery["model"], 160)},
        "project": clean(delivery["project"], 80),
        "error": clean(delivery["error"], 400) or "–",
        "time": {"text": age(delivery["failed_at"]), "title": moment(delivery["failed_at"])},
    }


def _check_row(check: Json) -> Json:
    tone = "ok" if check["ok"] else "bad" if check["required"] else "warn"
    return {
        "id": check["name"],
        "name": check["name"].replace("_", " "),
        "state": {"text": "ok" if check["ok"] else "failed", "tone": tone},
        "seen": clean(check["observed"], 300) or "–",
    }


async def _projects(view: View) -> list[Json]:
    """Projects with their usage, archived ones among them, the largest storage first."""
    listed = await view.api.items("organization/projects", MAX_PROJECTS, include_archived="true")
    found = await asyncio.gather(*(view.api.get(f"organization/projects/{one['id']}") for one in listed))
    return sorted(found, key=lambda project: -int(project["usage"]["stored_bytes"]))


def _project_row(project: Json) -> Json:
    usage = project["usage"]
    return {
        "id": project["id"],
        "label": clean(project["name"], 80),
        "name": {"text": clean(project["name"], 80), "sub": project["id"]},
        "status": {"text": project["status"], "tone": "ok" if project["status"] == "active" else "wait"},
        "stored": size(usage["stored_bytes"]),
        "jobs": f"{count(usage['queued_jobs'])}, {count(usage['running_jobs'])}",
        "gpu": duration(usage["gpu_seconds_this_month"]),
        "weight": f"{project['share_weight']:g}",
        "created": {"text": age(project["created_at"]), "title": moment(project["created_at"])},
    }


def _model_row(model: Json) -> Json:
    return {
        "id": model["id"],
        "name": clean(model["id"], 100),
        "context": f"{count(model.get('max_context_length'))} tokens",
        "rank": str((model.get("lora_limits") or {}).get("max_r", "–")),
        "created": {"text": age(model["created"]), "title": moment(model["created"])},
    }


def _failed_row(job: Json, project_names: dict[str, str], own_project_id: str) -> Json:
    error = job["error"] or {}
    page = f"/jobs/{job['id']}" if job["project_id"] == own_project_id else None  # a key reads its own project's jobs
    return {
        "id": job["id"],
        "label": wording.name(job),
        "name": {"text": wording.name(job), "href": page, "sub": job["id"]},
        "project": clean(project_names.get(job["project_id"], job["project_id"]), 80),
        "cause": {"text": wording.failure(job) or "–", "sub": clean(error.get("message"), 200)},
        "time": {"text": age(job["finished_at"]), "title": moment(job["finished_at"])},
    }
