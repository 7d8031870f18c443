"""The project of the key: limits and usage; for administrators also its keys and its audit log; webhooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from app.web.api_client import Json
from app.web.components.data_table import (
    CREATED,
    DataTable,
    Show,
    ago,
    brief,
    lead_column,
    number_column,
    show_section,
    state,
    text_column,
)
from app.web.components.elements import card, code_block, command_note, facts, note, prose, tag
from app.web.formatting import age, count, duration, moment, size
from app.web.frame import View, screen
from app.web.pages.jobs.wording import TARGET_KINDS

MAX_ROWS = 100
MAX_DELIVERIES = 20
NO_TARGETS = partial(
    command_note,
    "No delivery targets",
    "A target gets the adapter of each finished job. What creates one:",
    "tunery targets create --help",
)
NO_WEBHOOKS = partial(
    command_note, "No webhook endpoints", "What creates one:", "tunery webhooks create URL --name NAME"
)
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


@screen("/project", "Project")
class ProjectPage(View):
    async def build(self) -> None:
        project = await self.api.get("project")
        with tag("h1"):
            tag("span", "Project ")
            tag("bdi", project["name"])
        _show_usage(project)
        with card("Your key"):
            facts({"Id": project["api_key"]["id"], "Scopes": ", ".join(project["api_key"]["scopes"])})
        if self.session.is_admin:
            path = f"organization/projects/{project['id']}/api_keys"
            if await show_section("API keys", self.api.items(path, MAX_ROWS, include_revoked="true"), KEY_COLUMNS):
                tag("p", "A key that may read everything in the project and change nothing is created with:", "t-muted")
                code_block(f"tunery keys create --project {project['id']} --scope all:read --name NAME")
        await show_section("Delivery targets", self.api.items("delivery_targets", MAX_ROWS), TARGET_COLUMNS, NO_TARGETS)
        await _show_webhooks(self)
        if self.session.is_admin:
            await show_audit(self, project["id"])


def _show_usage(project: Json) -> None:
    usage, limits = project["usage"], project["limits"]
    with card("Usage and limits"):
        facts(
            {
                "Stored": _of(usage["stored_bytes"], limits["max_stored_bytes"], size),
                "Queued jobs": f"{count(usage['queued_jobs'])}, {_or_default(limits['max_queued_jobs'])}",
                "Running jobs": _of(usage["running_jobs"], limits["max_running_jobs"], count),
                "Compute time this month": _of(
                    usage["gpu_seconds_this_month"], limits["max_gpu_seconds_per_month"], duration
                ),
                "Planned compute time": duration(usage["held_gpu_seconds"]),
                "Requests per second": _or_default(limits["max_requests_per_second"]),
            }
        )


def _or_default(limit: int | None) -> str:
    return "at most the service's default" if limit is None else f"at most {count(limit)}"


def _of(used: float, limit: float | None, text: Callable[[float], str]) -> str:
    return f"{text(used)}, {'no limit' if limit is None else f'at most {text(limit)}'}"


async def _show_webhooks(view: View) -> None:
    endpoints = view.api.items("webhook_endpoints", MAX_ROWS)
    for endpoint in await show_section("Webhooks", endpoints, None, NO_WEBHOOKS):
        name = endpoint["name"]
        deliveries = await view.api.items(f"webhook_endpoints/{endpoint['id']}/deliveries", MAX_DELIVERIES)
        with card(name):
            tag("bdi", endpoint["url"], "t-mono t-wrap")
            tag("p", f"Events: {', '.join(endpoint['event_types'])}", "t-muted t-wrap")
            if not endpoint["enabled"]:
                note("Disabled", endpoint["disabled_reason"] or "by its owner", "warn")
            DataTable(f"Deliveries to {name}", WEBHOOK_COLUMNS, deliveries)


async def show_audit(view: View, project_id: str | None) -> None:
    """The latest entries, of one project or of all."""
    params = {"project_ids[]": project_id} if project_id else {}
    entries = view.api.items("organization/audit_logs", MAX_ROWS, **params)
    if len(await show_section("Audit log", entries, AUDIT_COLUMNS)) == MAX_ROWS:
        prose(f"The newest {MAX_ROWS} entries; all: `tunery audit list`", "t-muted")


def _or_never(show: Show) -> Show:
    return lambda unix_seconds: show(unix_seconds) if unix_seconds else "never"


def _place(destination: Json) -> str:
    """The address of a target: its servers, directory, bucket or repository."""
    if "bucket" in destination:
        return "/".join(filter(None, (destination["bucket"], destination.get("prefix"))))
    return brief(destination.get("urls") or destination.get("path") or destination.get("repo_id"))


def _last_result(attempts: list[Json]) -> str:
    if not attempts:
        return "–"
    last = attempts[0]
    return last["error"] or f"status {last['status_code']} in {last['duration_ms']} ms"


KEY_COLUMNS = (
    lead_column("Key", "name", sub="redacted_value"),
    text_column("Status", "status", state(STATE_TONES)),
    text_column("Scopes", "scopes"),
    number_column("Last used", "last_used_at", _or_never(age)),
    number_column("Expires", "expires_at", _or_never(moment)),
)
TARGET_COLUMNS = (
    lead_column("Target", "name", sub="id"),
    text_column("Kind", "kind", TARGET_KINDS.__getitem__),
    text_column("Place", "destination", _place),
    text_column("Status", "status", TARGET_STATES.__getitem__),
    text_column("Gets every job", "default", lambda is_default: "yes" if is_default else "no"),
    text_column("Credentials", "credentials", lambda names: ", ".join(names) or "none"),
    number_column("Changed", "updated_at", ago),
)
WEBHOOK_COLUMNS = (
    lead_column("Event", "event_type", sub="id"),
    text_column("Status", "status", state(STATE_TONES)),
    number_column("Attempts", "attempt_count", count),
    text_column("Last result", "attempts", _last_result),
    CREATED,
)
AUDIT_COLUMNS = (
    lead_column("Action", "type"),
    text_column("Actor", "actor.id"),
    text_column("Objects", "object_ids"),
    text_column("Address", "ip_address"),
    number_column("Time", "effective_at", ago),
)
