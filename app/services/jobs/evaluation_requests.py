"""Checks of an evaluation that a client requests: its file, and the endpoints that it names."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy.orm import Session

from app.db.files import files
from app.db.tables import File
from app.domain.error_text.json_text import as_json, unquoted
from app.domain.evaluations.graders import EvaluationSettings, ScoreModel, templates_of
from app.errors import BadRequest

PURPOSES = ("evals", "fine-tune")
MAX_TEMPLATES_BYTES = 64_000  # of one evaluation together


def find_file(session: Session, project_id: str, file_id: str, param: str, problems: list[BadRequest]) -> File | None:
    """The evaluation file; None after a problem was added."""
    file = files.get(session, project_id, file_id)
    if file is None:
        text = f"invalid {param}: {unquoted(file_id)}. No such File object; upload one with purpose evals."
        problems.append(BadRequest(text, param))
    elif file.purpose not in PURPOSES:
        purpose, allowed = as_json(file.purpose), " or ".join(map(as_json, PURPOSES))
        text = f"invalid {param}: {file.id}. Its purpose is {purpose}; an evaluation needs the purpose {allowed}"
        problems.append(BadRequest(text, param))
        return None
    return file


def grader_problems(
    request: EvaluationSettings, endpoints: Collection[str] | None, prefix: str = ""
) -> list[BadRequest]:
    """Templates that are too large together, and endpoints that the operator has not named; None: any endpoint."""
    size_bytes = sum(len(text.encode()) for grader in request.graders for text in templates_of(grader))
    problems = []
    if size_bytes > MAX_TEMPLATES_BYTES:
        text = f"{prefix}graders: their templates have {size_bytes:,} bytes together; at most {MAX_TEMPLATES_BYTES:,}"
        problems.append(BadRequest(f"{text} are allowed", f"{prefix}graders"))
    if endpoints is None:
        return problems
    endpoint_params = [
        (f"{prefix}graders.{number}.endpoint", grader.endpoint)
        for number, grader in enumerate(request.graders)
        if isinstance(grader, ScoreModel)
    ]
    if request.reference is not None and request.reference.model is not None:
        endpoint_params.append((f"{prefix}reference.endpoint", request.reference.endpoint))
    found = (_endpoint_problem(param, name, endpoints) for param, name in endpoint_params)
    return problems + [problem for problem in found if problem is not None]


def _endpoint_problem(param: str, name: str | None, endpoints: Collection[str]) -> BadRequest | None:
    known = ", ".join(sorted(endpoints)) or "none"
    if name is None and len(endpoints) != 1:
        text = f"{param}: name an endpoint; the operator has configured: {known} (TUNERY_ENDPOINTS)"
        return BadRequest(text, param, "missing_required_parameter")
    if name is not None and name not in endpoints:
        text = f"{param}: there is no endpoint {as_json(name)}; the operator has configured: {known} (TUNERY_ENDPOINTS)"
        return BadRequest(text, param)
    return None
