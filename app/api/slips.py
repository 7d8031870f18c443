"""What a URL that does not exist was meant for: the usual slips are told of, never followed."""

from __future__ import annotations

from fastapi import Request
from starlette.routing import Match

PREFIXES = ("", "v1")  # `base_url` without /v1 or with it twice, a slash too many
OLDER_NAMES = {
    "fine-tuning": ("fine_tuning",),
    "fine-tunes": ("fine_tuning", "jobs"),  # OpenAI's until 2023, Together's
    "fine_tunes": ("fine_tuning", "jobs"),
    "finetune": ("fine_tuning", "jobs"),
}


def meant_by(request: Request) -> str | None:
    """The path that exists where only such a slip is wrong with the one that was asked for."""
    asked = str(request.scope["path"])
    words = [word for word in asked.split("/") if word not in PREFIXES]
    first = OLDER_NAMES.get(words[0], (words[0],)) if words else ()
    path = "/".join(["/v1", *first, *words[1:]])
    return path if path != asked and _is_there(request, path) else None


def _is_there(request: Request, path: str) -> bool:
    scope = {**request.scope, "path": path}
    return any(route.matches(scope)[0] != Match.NONE for route in request.app.router.routes)
