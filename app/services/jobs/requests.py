"""Requests for jobs: load the rows they refer to, and resolve all parameters. Nothing is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import and_, bindparam, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session, aliased

from app.db import files
from app.db.base_models import models
from app.db.base_models.models import is_offered_to
from app.db.files import is_visible_to
from app.db.jobs import checkpoints, jobs
from app.db.scheduling import workers
from app.db.tables import BaseModelRow, DeliveryTarget, File, Job, Project
from app.domain.datasets.warnings import EXPERTS_FROZEN, SAME_FILE, request_warning
from app.domain.error_text.json_text import as_json, unquoted
from app.domain.evaluations.graders import EvaluationSettings, ScoreModel, default_evaluation, templates_of
from app.domain.files import JobFileOrigins
from app.domain.jobs.create_job import CreateJob, parse_clone, parse_create, settings_of_spec
from app.domain.jobs.definitions import ParentAdapter
from app.domain.jobs.request_parameters import collect
from app.domain.jobs.resolve import resolve
from app.domain.jobs.spec import JobSpec
from app.errors import BadRequest, NotFound, NotPermitted, combine_errors
from app.services import base_models
from app.services.deliveries import targets
from app.services.jobs.records import trained_base

EVALUATION_PURPOSES = ("evals", "fine-tune")
FILES = ("training_file", "validation_file")
MAX_TEMPLATES_BYTES = 64_000  # of one evaluation together

# The fields of a create body that a job stores, and their columns. A clone repeats them.
COLUMNS = {
    "training_file": "training_file_id",
    "validation_file": "validation_file_id",
    "suffix": "suffix",
    "metadata": "user_metadata",
    "priority": "priority",
    "urgent": "urgent",
    "worker_labels": "worker_labels",
    "deliver_to": "deliver_to",
    "integrations": "integrations",
}

# The rows that a request refers to, in one statement, which is compiled once; NULL for one that does not exist or that
# the project may not use. A statement for each row took three times the CPU, a fifth of the cost of creating a job.
TRAINING, VALIDATION = aliased(File, name="training_file"), aliased(File, name="validation_file")
DEFAULT_TARGETS = select(func.array_agg(aggregate_order_by(DeliveryTarget.name, DeliveryTarget.seq))).where(
    *targets.existing(Project.id), DeliveryTarget.is_default
)
REFERENCES = (
    select(Project, DEFAULT_TARGETS.scalar_subquery(), BaseModelRow, TRAINING, VALIDATION)
    .select_from(Project)
    .outerjoin(BaseModelRow, and_(BaseModelRow.name == bindparam("model"), is_offered_to(Project.id)))
    .outerjoin(TRAINING, and_(TRAINING.id == bindparam("training_file"), is_visible_to(Project.id, TRAINING)))
    .outerjoin(VALIDATION, and_(VALIDATION.id == bindparam("validation_file"), is_visible_to(Project.id, VALIDATION)))
    .where(Project.id == bindparam("project_id"))
)


def build_job(
    session: Session,
    project_id: str,
    is_admin: bool,
    body: Mapping[str, Any],
    endpoints: Collection[str],
    original: Job | None = None,
) -> Job:
    """The row of a new job, which is not added: its rows were found, and every "auto" is replaced by a value.

    `body` is a create body; with an `original` its changes. A create body without `validation_file` or `evaluation`
    gets those of the held-out rows of its training file. `endpoints` are those that the operator has named. Raises
    BadRequest with all problems, NotFound if the only problem is a missing model or file, or NotPermitted.
    """
    request, problems = parse_create(body) if original is None else _parse_clone(session, original, body)
    deliver_to: Sequence[str] | None = request.deliver_to
    try:
        if deliver_to:
            deliver_to = [target.name for target in targets.resolve(session, project_id, deliver_to)]
    except BadRequest as problem:
        problems.append(problem)
    named = {name: getattr(request, name) for name in ("model", *FILES)}
    project, default_targets, base, *found = session.execute(REFERENCES, {"project_id": project_id} | named).one()
    try:
        base, parent = _find_base_and_parent(session, project_id, request.model, base)
        files_by_param = {
            name: _require_file(file, named[name], name) for name, file in zip(FILES, found, strict=True) if named[name]
        }
    except NotFound as missing:
        problems += collect(request.model_dump(exclude_unset=True)).problems  # they need no base model
        if problems:
            raise combine_errors([*problems, missing]) from None
        raise
    if original is None and (defaults := _held_out_defaults(session, project_id, body, base, files_by_param)):
        return build_job(session, project_id, is_admin, {**body, **defaults}, endpoints)
    if request.evaluation is not None:
        problems += grader_problems(request.evaluation, endpoints, "evaluation.")
        find_evaluation_file(session, project_id, request.evaluation.file, "evaluation.file", problems)
    for param, file in files_by_param.items():
        problems += _purpose_problems(file, param)
    spec = _resolve_spec(request, base, parent, files_by_param, workers.gpus_per_job(session), problems)
    if request.urgent and not is_admin and not project.may_be_urgent:
        text = (
            "urgent: the jobs of this project may not precede those of other projects; send false, and use priority to"
        )
        text += " order them among themselves, or ask the operator (`tunery allow-urgent`)."
        raise NotPermitted(text, "urgent")
    warnings = [request_warning("without_effect", text) for text in request.without_effect]
    if len({file.sha256 for file in files_by_param.values()}) < len(files_by_param):
        warnings.append(request_warning("same_file", SAME_FILE))
    if base.catalog_entry.expert_parameters and not spec.lora.adapts_experts:
        warnings.append(request_warning("experts_frozen", EXPERTS_FROZEN))
    given = {column: value for name, column in COLUMNS.items() if (value := getattr(request, name)) is not None}
    given["integrations"] = [each.model_dump(exclude_none=True) for each in request.integrations or ()] or None
    given["worker_labels"] = sorted(set(request.worker_labels or ()))
    given["deliver_to"] = (default_targets or []) if deliver_to is None else deliver_to
    return Job(
        **given,
        project_id=project_id,
        base_model=base.name,
        spec=spec.model_dump(mode="json"),
        cloned_from=original.id if original else None,
        request=dict(body),
        warnings=warnings,
    )


def _held_out_defaults(
    session: Session, project_id: str, body: Mapping[str, Any], base: BaseModelRow, files_by_param: Mapping[str, File]
) -> dict[str, Any]:
    """The `validation_file` and the `evaluation` that a body leaves out and the training file has held-out rows for.

    No evaluation without a grader for the rows, and none with a row that may be longer than the context: it would fail
    the job.
    """
    training_file = files_by_param.get("training_file")
    held_out_id = training_file.held_out_file_id if training_file else None
    missing = {"validation_file", "evaluation"} - body.keys()
    held_out = files.get(session, project_id, held_out_id) if held_out_id and missing else None
    if held_out is None or held_out.preparation is None:
        return {}
    facts = held_out.preparation
    defaults: dict[str, Any] = {"validation_file": held_out.id}
    if evaluation := default_evaluation(
        facts["grader"], facts["held_out_max_bytes"], base.catalog_entry.context_length
    ):
        defaults["evaluation"] = {"file": held_out.id} | evaluation
    return {name: value for name, value in defaults.items() if name in missing}


def find_model(session: Session, project_id: str, name: str) -> tuple[BaseModelRow, ParentAdapter | None]:
    return _find_base_and_parent(session, project_id, name, models.get_base(session, project_id, name))


def find_file(session: Session, project_id: str, file_id: str, param: str) -> File:
    return _require_file(files.get(session, project_id, file_id), file_id, param)


def require_fine_tune_purpose(file: File, validation_file: File | None, param: str) -> None:
    """Raises BadRequest for files whose purpose is not fine-tune."""
    problems = _purpose_problems(file, param)
    if validation_file is not None:
        problems += _purpose_problems(validation_file, "validation_file")
    if problems:
        raise combine_errors(problems)


def _parse_clone(session: Session, original: Job, overrides: Mapping[str, Any]) -> tuple[CreateJob, list[BadRequest]]:
    """As `parse_clone`. Raises BadRequest also for each deleted file that the clone takes from the original."""
    stored = {name: getattr(original, column) for name, column in COLUMNS.items()}
    parsed, problems = parse_clone(settings_of_spec(JobSpec.model_validate(original.spec), **stored), overrides)
    files_of = {name: stored[name] for name in FILES if stored[name]}
    inherited = {name: file_id for name, file_id in files_of.items() if getattr(parsed, name) == file_id}
    existing = files.get_visible(session, list(inherited.values()))
    deleted = [
        BadRequest(
            f"{name}: {file_id} of job {original.id} was deleted; name another {name} in the body", name, "file_deleted"
        )
        for name, file_id in inherited.items()
        if file_id not in existing
    ]
    if deleted:
        raise combine_errors([*problems, *deleted])
    return parsed, problems


def _find_base_and_parent(
    session: Session, project_id: str, name: str, base: BaseModelRow | None
) -> tuple[BaseModelRow, ParentAdapter | None]:
    if base is not None:
        return base, None
    parent = _find_parent_adapter(session, project_id, name)
    if parent is not None:
        return parent
    aliased = base_models.resolve_alias(session, project_id, name)
    if aliased is not None:
        return aliased, None
    raise base_models.model_not_found(name, base_models.available_models(session, project_id))


def _find_parent_adapter(session: Session, project_id: str, name: str) -> tuple[BaseModelRow, ParentAdapter] | None:
    """The base model and the adapter of an `ft:` model; None for a name that the project may not use.

    Locks the files of the adapter until this transaction ends; later the job keeps them from being purged, even if they
    are deleted. Raises BadRequest if the training of the adapter cannot be continued any more.
    """
    tuned = models.get_usable(session, project_id, name)
    if tuned is None:
        return None
    job = jobs.get(session, tuned.project_id, tuned.job_id)
    checkpoint = checkpoints.by_names(session, [name]).get(name)
    assert job is not None, "a foreign key refers to it"
    if checkpoint is None or files.lock_content(session, tuned.project_id, checkpoint.file_ids) < len(
        checkpoint.file_ids
    ):
        raise _cannot_continue(name, "files of its adapter were deleted")
    base = trained_base(session, project_id, job, checkpoint)
    if isinstance(base, str):
        raise _cannot_continue(name, base)
    spec = JobSpec.model_validate(job.spec)
    return base, ParentAdapter(name, spec.lora, spec.chat_template_kwargs)


def _cannot_continue(name: str, why: str) -> BadRequest:
    return BadRequest(f"model: {as_json(name)} cannot be continued: {why}. Name another model.", "model")


def _require_file(file: File | None, file_id: str, param: str) -> File:
    if file is None:
        text = f"invalid {param}: {unquoted(file_id)}. No such File object; upload one with purpose fine-tune."
        raise NotFound(text, param)
    return file


def _resolve_spec(
    request: CreateJob,
    base: BaseModelRow,
    parent: ParentAdapter | None,
    files_by_param: Mapping[str, File],
    gpus: int,
    problems: list[BadRequest],
) -> JobSpec:
    """Raises BadRequest with `problems` and those of the parameters."""
    file, body = files_by_param["training_file"], request.model_dump(exclude_unset=True)
    try:
        spec = resolve(body, base.name, base.catalog_entry, file.line_count or 0, parent, file.bytes, gpus)
    except BadRequest as error:
        raise combine_errors([*problems, error]) from error
    if problems:
        raise combine_errors(problems)
    origins: JobFileOrigins = {param: file.origin for param, file in files_by_param.items() if file.origin}
    alias = request.model if parent is None and request.model != base.name else None
    return spec.model_copy(update={"model_alias": alias, "file_origins": origins or None})


def _purpose_problems(file: File, param: str) -> list[BadRequest]:
    if file.purpose == "fine-tune":
        return []
    purpose = as_json(file.purpose)
    text = f'invalid {param}: {file.id}. Its purpose is {purpose}; a {param} needs the purpose "fine-tune"'
    return [BadRequest(text, param)]


def find_evaluation_file(
    session: Session, project_id: str, file_id: str, param: str, problems: list[BadRequest]
) -> File | None:
    """The evaluation file; None after a problem was added."""
    file = files.get(session, project_id, file_id)
    if file is None:
        text = f"invalid {param}: {unquoted(file_id)}. No such File object; upload one with purpose evals."
        problems.append(BadRequest(text, param))
    elif file.purpose not in EVALUATION_PURPOSES:
        purpose, allowed = as_json(file.purpose), " or ".join(map(as_json, EVALUATION_PURPOSES))
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
