"""What a key may do. Which scope a call needs follows from its method and path, so a new route is covered by the rule.

    files:read  files:write  jobs:read  jobs:write  models:read  models:write  webhooks:read  webhooks:write
    all, all:read    everything of the key's own project, to change or to read
    admin            projects, keys and the audit log: /v1/organization

`write` includes `read`. A path that no area knows is closed to everything but `all`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

from app.domain.error_text.json_text import shown
from app.errors import BadRequest

ALL = "all"
ALL_READ = "all:read"
ADMIN = "admin"
AREAS = {  # the longest prefix decides
    "/v1/files": "files",
    "/v1/uploads": "files",
    "/v1/fine_tuning": "jobs",
    "/v1/events": "jobs",
    "/v1/queue": "jobs",
    "/v1/workers": "jobs",
    "/v1/models": "models",
    "/v1/webhooks": "webhooks",
    "/v1/webhook_endpoints": "webhooks",
    "/v1/webhook_event_types": "webhooks",
}
RESOURCES = tuple(dict.fromkeys(AREAS.values()))
SCOPES = (ALL, ALL_READ, ADMIN, *(f"{resource}:{access}" for resource in RESOURCES for access in ("read", "write")))
ANY_KEY = ("/v1/project",)  # what a key tells of itself
ORGANIZATION = "/v1/organization"
READING_METHODS = ("GET", "HEAD", "OPTIONS")
READING_POSTS = ("/v1/fine_tuning/jobs/plan", "/v1/files/{file_id}/validate")  # they answer, and change nothing


@lru_cache(maxsize=1024)  # asked at every request; there are as many answers as routes
def needed(method: str, path: str) -> str | None:
    """The scope of a call, by the template of its path; None where any good key will do."""
    if path in ANY_KEY:
        return None
    if _is_within(path, ORGANIZATION):
        return ADMIN
    access = "read" if reads_only(method, path) else "write"
    return f"{area(path) or _first_segment(path)}:{access}"


def reads_only(method: str, path: str) -> bool:
    return method in READING_METHODS or path in READING_POSTS


def area(path: str) -> str | None:
    """None for a path that nobody put into an area."""
    known = [prefix for prefix in AREAS if _is_within(path, prefix)]
    return AREAS[max(known, key=len)] if known else None


def allow(scopes: Collection[str], scope: str | None) -> bool:
    if scope is None or scope in scopes:
        return True
    if scope == ADMIN:
        return False
    if ALL in scopes:
        return True
    return scope.endswith(":read") and (ALL_READ in scopes or f"{scope.removesuffix('read')}write" in scopes)


def checked(scopes: Sequence[str]) -> list[str]:
    """In the order of SCOPES, each once. Raises BadRequest naming every scope that does not exist."""
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        seen = f"there is no {', '.join(map(shown, unknown))}" if unknown else "the array is empty"
        raise BadRequest(f"scopes: {seen}; give one or more of {', '.join(SCOPES)}", "scopes")
    return [scope for scope in SCOPES if scope in scopes]


def _is_within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


def _first_segment(path: str) -> str:
    return path.removeprefix("/v1/").split("/")[0]
