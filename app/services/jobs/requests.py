"""Requests for jobs: load the rows they refer to, and resolve all parameters. Nothing is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.files import files
from app.db.jobs import checkpoints, jobs, references
from app.db.tables import BaseModelRow, File, Job
from app.domain.datasets.warnings import SAME_FILE, request_warning
from app.domain.error_text.json_text import as_json, unquoted
from app.domain.files.files import JobFileOrigins
from app.domain.jobs.cloning import parse_clone, settings_of_spec
from app.domain.jobs.create_job import CreateJob, parse_create
from app.domain.jobs.parameters import ParentAdapter
from app.domain.jobs.resolve import resolve
from app.domain.jobs.spec import JobSpec
from app.errors import BadRequest, NotFound, NotPermitted, combine_errors
from app.services.base_models import models as model_services
from app.services.deliveries import targets
from app.services.jobs import evaluation_requests


def build_job(
    session: Session,
    project_id: str,
    is_admin: bool,
    body: Mapping[str, Any],
    endpoints: Collection[str],
    original: Job | None = None,
) -> Job:
    """The row of a new job, which is not added: its rows were found, and every "auto" is replaced by a value.

    `body` is a create body; with an `original` its changes. `endpoints` are those that the operator has named. Raises
    BadRequest with all problems, NotFound if the only problem is a missing model or file, or NotPermitted.
    """
    request, problems = parse_create(body) if original is None else _parse_clone(session, original, body)
    deliver_to: list[str] = []
    try:
        deliver_to = targets.resolve_names(session, project_id, request.deliver_to)
    except BadRequest as problem:
        problems.append(problem)
    rows = references.load_job_references(
        session, project_id, request.model, request.training_file, request.validation_file
    )
    try:
        base, parent = _find_base_and_parent(session, project_id, request.model, rows.base)
        files_by_param = _files(request, rows)
    except NotFound:
        if problems:
            raise combine_errors(problems) from None
        raise
    if request.evaluation is not None:
        problems += evaluation_requests.grader_problems(request.evaluation, endpoints, "evaluation.")
        evaluation_requests.find_file(session, project_id, request.evaluation.file, "evaluation.file", problems)
    for param, file in files_by_param.items():
        problems += _purpose_problems(file, param)
    problems += _integration_problems(request.integrations or ())
    spec = _resolve_spec(request, base, parent, files_by_param, problems)
    if request.urgent and not is_admin and not rows.project.may_be_urgent:
        raise _not_urgent()
    warnings = [request_warning("without_effect", text) for text in request.without_effect]
    if len({file.sha256 for file in files_by_param.values()}) < len(files_by_param):
        warnings.append(request_warning("same_file", SAME_FILE))
    return Job(
        project_id=project_id,
        base_model=base.name,
        spec=spec.model_dump(mode="json"),
        training_file_id=request.training_file,
        validation_file_id=request.validation_file,
        suffix=request.suffix,
        user_metadata=request.metadata,
        priority=request.priority or 0,
        is_urgent=request.urgent or False,
        worker_labels=sorted(set(request.worker_labels or ())),
        deliver_to=deliver_to,
        cloned_from=original.id if original else None,
        request=dict(body),
        warnings=warnings,
    )


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


def _not_urgent() -> NotPermitted:
    text = (
        "urgent: the jobs of this project may not precede those of other projects; send false, and use priority to "
        "order them among themselves, or ask the operator (`tunery allow-urgent`)."
    )
    return NotPermitted(text, "urgent")


def _parse_clone(session: Session, original: Job, overrides: Mapping[str, Any]) -> tuple[CreateJob, list[BadRequest]]:
    """As `parse_clone`. Raises BadRequest also for each deleted file that the clone takes from the original."""
    ids = {"training_file": original.training_file_id, "validation_file": original.validation_file_id}
    settings = settings_of_spec(
        JobSpec.model_validate(original.spec),
        suffix=original.suffix,
        metadata=original.user_metadata,
        priority=original.priority,
        urgent=original.is_urgent,
        worker_labels=original.worker_labels,
        deliver_to=original.deliver_to,
        **ids,
    )
    parsed, problems = parse_clone(settings, overrides)
    inherited = {name: file_id for name, file_id in ids.items() if file_id and getattr(parsed, name) == file_id}
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
    aliased = model_services.resolve_alias(session, project_id, name)
    if aliased is not None:
        return aliased, None
    raise model_services.model_not_found(name, model_services.available_models(session, project_id))


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
    base = models.get_base(session, project_id, job.base_model)
    if base is None:
        raise _cannot_continue(name, f"its base model {as_json(job.base_model)} is not registered any more")
    trained_on = checkpoint.manifest.get("base_model", {}).get("manifest_sha256", base.manifest_sha256)
    if trained_on != base.manifest_sha256:
        raise _cannot_continue(name, f"the files registered as {as_json(base.name)} are not those it was trained on")
    return base, ParentAdapter(name, JobSpec.model_validate(job.spec).lora)


def _cannot_continue(name: str, why: str) -> BadRequest:
    return BadRequest(f"model: {as_json(name)} cannot be continued: {why}. Name another model.", "model")


def _files(request: CreateJob, rows: references.JobReferences) -> dict[str, File]:
    """{parameter: file}. Raises NotFound."""
    files_by_param = {"training_file": _require_file(rows.training_file, request.training_file, "training_file")}
    if request.validation_file is not None:
        found = _require_file(rows.validation_file, request.validation_file, "validation_file")
        files_by_param["validation_file"] = found
    return files_by_param


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
    problems: list[BadRequest],
) -> JobSpec:
    """Raises BadRequest with `problems` and those of the parameters."""
    try:
        line_count = files_by_param["training_file"].line_count or 0
        spec = resolve(request.model_dump(exclude_unset=True), base.name, base.catalog_entry, line_count, parent)
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


def _integration_problems(integrations: Sequence[Any]) -> list[BadRequest]:
    if not integrations:
        return []
    named = [item.get("type") for item in integrations if isinstance(item, dict)]
    names = ", ".join(as_json(name) for name in named) or "this"
    text = (
        f"integrations: {names} is not offered here; the metrics are in the events and in the results file of the job"
    )
    return [BadRequest(text, "integrations", "unsupported_value")]
