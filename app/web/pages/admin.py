"""For administrators: projects with their storage and limits, base models, the jobs of all projects that failed."""

from __future__ import annotations

import asyncio
from typing import Any

from app.web.components.data_table import DataTable, column
from app.web.components.elements import facts, note, tag
from app.web.formatting import age, clean, count, duration, moment, size
from app.web.frame import View, screen
from app.web.models import base_models
from app.web.pages.jobs import wording
from app.web.pages.project import show_audit

MAX_PROJECTS = 100
MAX_FAILED = 50
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
    column("cause", "Cause"),
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
    stored = sum(one["usage"]["stored_bytes"] for one in projects)
    facts({"Projects": count(len(projects)), "Stored": size(stored)})
    tag("h2", "Projects")
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
    DataTable("Failed jobs", FAILED_COLUMNS, [_failed_row(job, names) for job in failed["data"]])
    await show_audit(view, None)


async def _projects(view: View) -> list[Json]:
    """All projects with their usage, the largest storage first."""
    listed = await view.api.items("organization/projects", MAX_PROJECTS)
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


def _failed_row(job: Json, project_names: dict[str, str]) -> Json:
    error = job["error"] or {}
    return {
        "id": job["id"],
        "label": wording.name(job),
        "name": {"text": wording.name(job), "sub": job["id"]},
        "project": clean(project_names.get(job["project_id"], job["project_id"]), 80),
        "cause": {"text": str(error.get("code", "–")), "sub": clean(error.get("message"), 200)},
        "time": {"text": age(job["finished_at"]), "title": moment(job["finished_at"])},
    }
