"""The project of the key: limits and usage; for administrators also its keys and its audit log; webhooks."""

from __future__ import annotations

from typing import Any

from app.web.api_client import ApiError
from app.web.components.data_table import DataTable, column
from app.web.components.elements import card, code_block, facts, note, tag
from app.web.formatting import age, clean, count, duration, moment, size
from app.web.frame import View, error_note, screen
from app.web.pages.jobs.wording import TARGET_KINDS

MAX_ROWS = 100
MAX_DELIVERIES = 20
STATE_TONES = {
    "delivered": "ok",
    "pending": "wait",
    "failed": "bad",
    "active": "ok",
    "expired": "wait",
    "revoked": "bad",
}
TARGET_STATES = {
    "ready": {"text": "ready", "tone": "ok"},
    "credentials_lost": {"text": "credentials lost", "tone": "bad", "sub": "No key of the service decrypts them."},
}

Json = dict[str, Any]


@screen("/project", "Project", "project")
async def build(view: View) -> None:
    project = await view.api.get("project")
    with tag("h1"):
        tag("span", "Project ")
        tag("bdi", clean(project["name"], 100))
    show_usage(project)
    with card("Your key"):
        facts({"Id": project["api_key"]["id"], "Scopes": ", ".join(project["api_key"]["scopes"])})
    if view.session.is_admin:
        await show_keys(view, project["id"])
    await _show_targets(view)
    await _show_webhooks(view)
    if view.session.is_admin:
        await show_audit(view, project["id"])


def show_usage(project: Json) -> None:
    usage, limits = project["usage"], project["limits"]
    with card("Usage and limits"):
        facts(
            {
                "Stored": _of(size(usage["stored_bytes"]), limits["max_stored_bytes"], size),
                "Queued jobs": f"{count(usage['queued_jobs'])}, {_or_default(limits['max_queued_jobs'])}",
                "Running jobs": _of(count(usage["running_jobs"]), limits["max_running_jobs"], count),
                "GPU time this month": _of(
                    duration(usage["gpu_seconds_this_month"]), limits["max_gpu_seconds_per_month"], duration
                ),
                "Planned GPU time": duration(usage["held_gpu_seconds"]),
                "Requests per second": _or_default(limits["max_requests_per_second"]),
            }
        )


def _or_default(limit: int | None) -> str:
    return "at most the service's default" if limit is None else f"at most {count(limit)}"


def _of(used: str, limit: float | None, format_limit: Any) -> str:
    return f"{used}, {'no limit' if limit is None else f'at most {format_limit(limit)}'}"


async def show_keys(view: View, project_id: str) -> None:
    try:
        keys = await view.api.items(f"organization/projects/{project_id}/api_keys", MAX_ROWS, include_revoked="true")
    except ApiError as error:
        error_note(error, "Keys")
        return
    rows = [
        {
            "id": key["id"],
            "name": {"text": clean(key["name"], 80), "sub": key["redacted_value"]},
            "status": {"text": key["status"], "tone": STATE_TONES[key["status"]]},
            "scopes": clean(", ".join(key["scopes"]), 200),
            "used": age(key["last_used_at"]) if key["last_used_at"] else "never",
            "expires": moment(key["expires_at"]) if key["expires_at"] else "never",
        }
        for key in keys
    ]
    columns = (
        column("name", "Key", lead=True),
        column("status", "Status"),
        column("scopes", "Scopes"),
        column("used", "Last used", "number"),
        column("expires", "Expires", "number"),
    )
    tag("h2", "API keys")
    DataTable("API keys", columns, rows)
    tag("p", "A key that may read everything in the project and change nothing is created with:", "t-muted")
    code_block(f"tunery keys create --project {project_id} --scope all:read --name NAME")


async def _show_targets(view: View) -> None:
    tag("h2", "Delivery targets")
    try:
        targets = await view.api.items("delivery_targets", MAX_ROWS)
    except ApiError as error:
        error_note(error, "Delivery targets cannot be shown")
        return
    if not targets:
        text = "A target gets the adapter of each finished job. Create one with: tunery targets create --help"
        note("No delivery targets", text)
        return
    rows = [
        {
            "id": target["id"],
            "label": clean(target["name"], 80),
            "name": {"text": clean(target["name"], 80), "sub": target["id"]},
            "kind": TARGET_KINDS.get(target["kind"], target["kind"]),
            "place": _place(target["destination"]),
            "status": TARGET_STATES[target["status"]],
            "default": "yes" if target["default"] else "no",
            "credentials": clean(", ".join(target["credentials"]), 120) or "none",
            "changed": {"text": age(target["updated_at"]), "title": moment(target["updated_at"])},
        }
        for target in targets
    ]
    columns = (
        column("name", "Target", lead=True),
        column("kind", "Kind"),
        column("place", "Place"),
        column("status", "Status"),
        column("default", "Gets every job"),
        column("credentials", "Credentials"),
        column("changed", "Changed", "number"),
    )
    DataTable("Delivery targets", columns, rows)


def _place(destination: Json) -> str:
    """The address of a target: its servers, directory, bucket or repository."""
    if "urls" in destination:
        return clean(", ".join(destination["urls"]), 300)
    if "bucket" in destination:
        return clean("/".join(filter(None, (destination["bucket"], destination.get("prefix")))), 300)
    return clean(str(destination.get("path") or destination.get("repo_id") or "–"), 300)


async def _show_webhooks(view: View) -> None:
    tag("h2", "Webhooks")
    try:
        endpoints = await view.api.items("webhook_endpoints", MAX_ROWS)
    except ApiError as error:
        error_note(error, "Webhooks cannot be shown")
        return
    if not endpoints:
        note("No webhook endpoints", "Create one with: tunery webhooks create URL --name NAME")
    for endpoint in endpoints:
        await _show_endpoint(view, endpoint)


async def _show_endpoint(view: View, endpoint: Json) -> None:
    deliveries = await view.api.items(f"webhook_endpoints/{endpoint['id']}/deliveries", MAX_DELIVERIES)
    rows = [
        {
            "id": one["id"],
            "event": {"text": one["event_type"], "sub": one["id"]},
            "status": {"text": one["status"], "tone": STATE_TONES[one["status"]]},
            "attempts": count(one["attempt_count"]),
            "result": _attempt_text(one["attempts"]),
            "created": {"text": age(one["created_at"]), "title": moment(one["created_at"])},
        }
        for one in deliveries
    ]
    columns = (
        column("event", "Event", lead=True),
        column("status", "Status"),
        column("attempts", "Attempts", "number"),
        column("result", "Last result"),
        column("created", "Created", "number"),
    )
    with card(clean(endpoint["name"], 80)):
        tag("bdi", clean(endpoint["url"], 300), "t-mono t-wrap")
        tag("p", f"Events: {', '.join(endpoint['event_types'])}", "t-muted t-wrap")
        if not endpoint["enabled"]:
            note("Disabled", clean(endpoint["disabled_reason"] or "by its owner", 300), "warn")
        DataTable(f"Deliveries to {clean(endpoint['name'], 80)}", columns, rows)


def _attempt_text(attempts: list[Json]) -> str:
    if not attempts:
        return "–"
    last = attempts[0]
    return clean(last["error"], 200) if last["error"] else f"status {last['status_code']} in {last['duration_ms']} ms"


async def show_audit(view: View, project_id: str | None) -> None:
    """The latest entries, of one project or of all."""
    params = {"project_ids[]": project_id} if project_id else {}
    try:
        page = await view.api.get("organization/audit_logs", limit=MAX_ROWS, **params)
    except ApiError as error:
        error_note(error, "The audit log cannot be shown")
        return
    rows = [
        {
            "id": entry["id"],
            "action": entry["type"],
            "actor": clean(entry["actor"]["id"], 80),
            "objects": clean(", ".join(entry["object_ids"]), 200) or "–",
            "address": clean(entry["ip_address"], 60) or "–",
            "time": {"text": age(entry["effective_at"]), "title": moment(entry["effective_at"])},
        }
        for entry in page["data"]
    ]
    columns = (
        column("action", "Action", lead=True),
        column("actor", "Actor"),
        column("objects", "Objects"),
        column("address", "Address"),
        column("time", "Time", "number"),
    )
    tag("h2", "Audit log")
    DataTable("Audit log", columns, rows)
    if page["has_more"]:
        tag("p", f"The newest {MAX_ROWS} entries; all: tunery audit list", "t-muted")
