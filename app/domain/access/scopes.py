"""The scopes of an API key. The method and the path of a request determine the scope it requires, for new routes too.

    files:read  files:write  jobs:read  jobs:write  models:read  models:write
    webhooks:read  webhooks:write  targets:read  targets:write  answers:read  answers:write
    all, all:read    read and write, or read, everything in the key's own project
    admin            read and write projects, keys and the audit log: /v1/organization

`write` includes `read`. A path without a resource requires `all` (or `all:read`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

from app.domain.error_text.json_text import as_json
from app.errors import BadRequest

ALL = "all"
ALL_READ = "all:read"
ADMIN = "admin"
RESOURCE_BY_PREFIX = {  # the longest prefix decides
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
    "/v1/delivery_targets": "targets",
    "/v1/chat/completions": "answers",
    "/v1/completions": "answers",
}
RESOURCES = tuple(dict.fromkeys(RESOURCE_BY_PREFIX.values()))
SCOPES = (ALL, ALL_READ, ADMIN, *(f"{resource}:{access}" for resource in RESOURCES for access in ("read", "write")))
ANY_KEY_PATHS = ("/v1/project",)  # the project and the key itself
ORGANIZATION = "/v1/organization"
READ_METHODS = ("GET", "HEAD", "OPTIONS")
READ_ONLY_POSTS = ("/v1/fine_tuning/jobs/plan", "/v1/files/{file_id}/validate")  # they change nothing


@lru_cache(maxsize=1024)  # called for every request; there is one result per route
def required_scope(method: str, path: str) -> str | None:
    """The scope that a request requires, by the template of its path; None if any valid key is enough."""
    if path in ANY_KEY_PATHS:
        return None
    if _is_within(path, ORGANIZATION):
        return ADMIN
    access = "read" if is_read_only(method, path) else "write"
    first_segment = path.removeprefix("/v1/").split("/")[0]
    return f"{resource_of(path) or first_segment}:{access}"


def is_read_only(method: str, path: str) -> bool:
    return method in READ_METHODS or path in READ_ONLY_POSTS


def resource_of(path: str) -> str | None:
    """The resource of a path; None if no prefix matches."""
    matching = [prefix for prefix in RESOURCE_BY_PREFIX if _is_within(path, prefix)]
    return RESOURCE_BY_PREFIX[max(matching, key=len)] if matching else None


def allows(scopes: Collection[str], scope: str | None) -> bool:
    """Whether a key with these scopes may do what requires `scope`."""
    if scope is None or scope in scopes:
        return True
    if scope == ADMIN:
        return False
    if ALL in scopes:
        return True
    return scope.endswith(":read") and (ALL_READ in scopes or f"{scope.removesuffix('read')}write" in scopes)


def validated_scopes(scopes: Sequence[str]) -> list[str]:
    """The scopes without repetition, in the order of SCOPES. Raises BadRequest that names every unknown scope."""
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        problem = f"there is no {', '.join(map(as_json, unknown))}" if unknown else "the array is empty"
        raise BadRequest(f"scopes: {problem}; give one or more of {', '.join(SCOPES)}", "scopes")
    return [scope for scope in SCOPES if scope in scopes]


def _is_within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")
