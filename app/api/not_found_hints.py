"""Hints for unknown URLs: common mistakes are named in the error, never redirected."""

from __future__ import annotations

from fastapi import Request
from starlette.routing import Match

CHECK_URL = "Please check the URL for typos."
PREFIXES = ("", "v1")  # a `base_url` without /v1 or with a second one, or an extra slash
OLDER_NAMES = {
    "fine-tuning": ("fine_tuning",),
    "fine-tunes": ("fine_tuning", "jobs"),  # OpenAI's until 2023, Together's
    "fine_tunes": ("fine_tuning", "jobs"),
    "finetune": ("fine_tuning", "jobs"),
}
ANSWERS = "Models answer at /v1/chat/completions and /v1/completions"
ENGINE = f"{ANSWERS}; for other routes, load the adapter into an inference server such as vLLM."
EVALUATIONS = "evaluations of a job take their place: POST /v1/fine_tuning/jobs/{job_id}/evaluations."
# What Tunery does not offer, by the first segments of the path, and what to use instead
NOT_OFFERED = {
    "evals": f"The Evals API is not offered; {EVALUATIONS}",
    "fine_tuning/alpha/graders": f"Graders by themselves are not offered; {EVALUATIONS}",
    "responses": f"The Responses API is not offered. {ENGINE}",
    "conversations": f"The Responses API and its conversations are not offered. {ENGINE}",
    "batches": f"Batches are not offered. {ANSWERS}, one request at a time; an evaluation answers the rows of a file.",
    "assistants": f"Assistants are not offered. {ENGINE}",
    "threads": f"Assistants and their threads are not offered. {ENGINE}",
    **dict.fromkeys(("chat", "completions", "embeddings", "deployments", "engines"), ENGINE),
}


def hint_for(request: Request) -> str:
    """One sentence that says what the URL of the request may have been meant to be."""
    path = str(request.scope["path"])
    segments = [segment for segment in path.split("/") if segment not in PREFIXES]
    if not segments:
        return CHECK_URL
    segments[0] = segments[0].removeprefix(
        "v1"
    )  # the 1.x command line of OpenAI (`openai -b URL/v1`) joins the parts without a slash
    suggested_path = "/".join(["/v1", *OLDER_NAMES.get(segments[0], (segments[0],)), *segments[1:]])
    if suggested_path != path and _route_exists(request, suggested_path):
        return f"Did you mean {suggested_path}?"
    return NOT_OFFERED.get(segments[0]) or NOT_OFFERED.get("/".join(segments[:3]), CHECK_URL)


def _route_exists(request: Request, path: str) -> bool:
    scope = {**request.scope, "path": path}
    return any(route.matches(scope)[0] != Match.NONE for route in request.app.router.routes)
