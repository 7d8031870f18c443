"""Hints for unknown URLs: common mistakes are named in the error, never redirected."""

from __future__ import annotations

from fastapi import Request
from starlette.routing import Match

PREFIXES = ("", "v1")  # a `base_url` without /v1 or with a second one, or an extra slash
OLDER_NAMES = {
    "fine-tuning": ("fine_tuning",),
    "fine-tunes": ("fine_tuning", "jobs"),  # OpenAI's until 2023, Together's
    "fine_tunes": ("fine_tuning", "jobs"),
    "finetune": ("fine_tuning", "jobs"),
}
INFERENCE = ("chat", "completions", "responses", "embeddings", "deployments", "engines")


def hint_for(request: Request) -> str:
    """One sentence that says what the URL of the request may have been meant to be."""
    path = str(request.scope["path"])
    segments = [segment for segment in path.split("/") if segment not in PREFIXES]
    if not segments:
        return "Please check the URL for typos."
    segments[0] = segments[0].removeprefix(
        "v1"
    )  # the 1.x command line of OpenAI (`openai -b URL/v1`) joins the parts without a slash
    suggested_path = "/".join(["/v1", *OLDER_NAMES.get(segments[0], (segments[0],)), *segments[1:]])
    if suggested_path != path and _route_exists(request, suggested_path):
        return f"Did you mean {suggested_path}?"
    if segments[0] in INFERENCE:
        return (
            "Models answer at /v1/chat/completions and /v1/completions; for other routes, load the adapter into an "
            "inference server such as vLLM."
        )
    return "Please check the URL for typos."


def _route_exists(request: Request, path: str) -> bool:
    scope = {**request.scope, "path": path}
    return any(route.matches(scope)[0] != Match.NONE for route in request.app.router.routes)
