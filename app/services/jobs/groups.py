"""Groups: the jobs that one request creates of a create body and its variants, to be compared.

A group has no row: its jobs have its id. The caller owns the transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.db.ids import new_id
from app.db.tables import Job
from app.domain.error_text.json_text import as_json
from app.domain.error_text.validation_text import OBJECT
from app.domain.jobs.create_job import vary
from app.domain.jobs.resolve import draw_seed
from app.errors import BadRequest, NotFound, NotPermitted, TuneryError, combine_errors
from app.job_queue import WorkerNotifier
from app.services.jobs import jobs
from app.services.jobs.jobs import JobRow
from app.services.jobs.requests import build_job
from app.settings import Settings

NOT_COMPARED = ("_sa_instance_state", "request", "suffix", "user_metadata")  # of equal variants


def create(
    session: Session,
    notifier: WorkerNotifier,
    project_id: str,
    is_admin: bool,
    job: Any,
    variants: Sequence[Any],
    settings: Settings,
) -> tuple[str, Sequence[JobRow]]:
    """Create a job of each variant, or none; the id of the group, and its jobs. Raises as `build`; QuotaExceeded."""
    built = build(session, project_id, is_admin, job, variants, settings.endpoints)
    group_id = new_id("ftgroup")
    for one in built:
        one.group_id = group_id
    return group_id, jobs.insert_all(session, notifier, settings, built)


def build(
    session: Session, project_id: str, is_admin: bool, job: Any, variants: Sequence[Any], endpoints: Collection[str]
) -> list[Job]:
    """The rows that a create with each merged body makes. Without a `seed` in `job`, all have one random seed.

    Raises as `build_job`, with the problems of `job` and of every variant; BadRequest for variants that differ by their
    names alone.
    """
    named = {f"variants[{number}]": variant for number, variant in enumerate(variants)}
    _require_objects({"job": job} | named)
    if job.get("seed") is None:
        job = {**job, "seed": draw_seed()}

    def attempt(variant: Mapping[str, Any] | None = None) -> Job | Sequence[TuneryError]:
        """The row of the job, or of a variant of it, or else the problems."""
        body: Mapping[str, Any] = job
        found: Sequence[BadRequest] = ()
        try:
            if variant is not None:
                body, found = vary(job, variant)
            row = build_job(session, project_id, is_admin, body, endpoints)
        except (BadRequest, NotFound, NotPermitted) as error:
            return [*found, *(error.combined or [error])]
        return found or row

    whole = attempt()
    of_job = () if isinstance(whole, Job) else whole
    problems = [_located(one, "job") for one in of_job]
    messages = {one.message for one in of_job}
    built: dict[str, Job] = {}
    for where, variant in named.items():
        made = attempt(variant)
        if not isinstance(made, Job):  # an invalid job spoils each variant: only what the variant itself states is new
            own = [one for one in made if not of_job or (one.message not in messages and _is_stated(one, variant))]
            problems += [_located(one, where) for one in own]
            continue
        if same := next((other for other, earlier in built.items() if _values(earlier) == _values(made)), None):
            text = f"{where} trains the same as {same}; change it, or leave it out"
            problems.append(BadRequest(text, where, "conflicting_parameters"))
        built[where] = made
    if problems:
        raise combine_errors(sorted(problems, key=lambda one: one.status))  # the first one decides the status
    return list(built.values())


def _require_objects(bodies: Mapping[str, Any]) -> None:
    wrong = {where: body for where, body in bodies.items() if not isinstance(body, Mapping)}
    if wrong:
        texts = {where: f"{where}: {OBJECT}, not {as_json(body)}" for where, body in wrong.items()}
        raise combine_errors([BadRequest(text, where, "invalid_type") for where, text in texts.items()])


def _located(problem: TuneryError, where: str) -> TuneryError:
    """The problem of a body with the path of that body in the request."""
    message, param = problem.message, problem.param
    is_path = param is not None and message.startswith(param)
    return type(problem)(
        f"{where}.{message}" if is_path else f"{where}: {message}", f"{where}.{param}" if param else where, problem.code
    )


def _is_stated(problem: TuneryError, variant: Mapping[str, Any]) -> bool:
    return (problem.param or "").partition(".")[0] in variant


def _values(job: Job) -> dict[str, Any]:
    return {name: value for name, value in vars(job).items() if name not in NOT_COMPARED}
