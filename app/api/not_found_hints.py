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
INFERENCE = ("chat", "completions", "responses", "embeddings", "deployments", "engines")


def advice_for(request: Request) -> str:
    """One sentence for who asked for a URL that is not there."""
    asked = str(request.scope["path"])
    words = [word for word in asked.split("/") if word not in PREFIXES]
    if not words:
        return "Please check the URL for typos."
    words[0] = words[0].removeprefix("v1")  # `openai -b URL/v1`, the 1.x command line, joins without a slash between
    if words[0] in INFERENCE:
        return "Tunery trains models and serves none: load the adapter into vLLM, for example, and ask there."
    path = "/".join(["/v1", *OLDER_NAMES.get(words[0], (words[0],)), *words[1:]])
    return f"Did you mean {path}?" if path != asked and _is_there(request, path) else "Please check the URL for typos."


def _is_there(request: Request, path: str) -> bool:
    scope = {**request.scope, "path": path}
    return any(route.matches(scope)[0] != Match.NONE for route in request.app.router.routes)
