"""Requests for jobs: load the rows they refer to, and resolve all parameters. Nothing is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.files import files
from app.db.jobs import references
from app.db.tables import BaseModelRow, File, Project
from app.domain.datasets.warnings import SAME_FILE, request_warning
from app.domain.error_text.json_text import as_json, unquoted
from app.domain.files.files import JobFileOrigins
from app.domain.jobs.parameters import ParentAdapter
from app.domain.jobs.resolve import resolve
from app.domain.jobs.spec import JobSpec
from app.errors import BadRequest, NotFound, combine_errors
from app.services.base_models import models as model_services
from app.services.deliveries import targets
from app.services.jobs import evaluation_requests, parent_adapter


@dataclass(frozen=True)
class SchedulingOptions:
    """Scheduling options of a job."""

    priority: int = 0
    is_urgent: bool = False
    worker_labels: Sequence[str] = ()


@dataclass(frozen=True)
class JobRequest:
    """A request body after the check of its shape: `body` has the parameters, `problems` the invalid ones left out."""

    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    metadata: dict[str, str] | None
    integrations: Sequence[Any]
    body: Mapping[str, Any]
    sent_body: Mapping[str, Any]  # the body as it was sent; of a clone, its changes
    problems: Sequence[BadRequest] = ()
    scheduling: SchedulingOptions = SchedulingOptions()
    deliver_to: Sequence[str] | None = None  # names of delivery targets; None: the defaults of the project
    cloned_from: str | None = None
    warnings: Sequence[str] = ()  # accepted parameters without an effect; they become events of the job


@dataclass(frozen=True)
class ResolvedRequest:
    """A request with the rows it refers to, and every "auto" replaced by a value."""

    project: Project
    base: BaseModelRow
    training_file: File
    validation_file: File | None
    spec: JobSpec
    warnings: list[dict[str, Any]]
    deliver_to: list[str]  # names of delivery targets


def resolve_request(
    session: Session, project_id: str, request: JobRequest, endpoints: Collection[str]
) -> ResolvedRequest:
    """Resolve a request, without writes. `endpoints` are those that the operator has named.

    Raises BadRequest with all problems, or NotFound if the only problem is a missing model or file.
    """
    deliver_to: list[str] = []
    try:
        deliver_to = targets.resolve_names(session, project_id, request.deliver_to)
    except BadRequest as problem:
        request = replace(request, problems=[*request.problems, problem])
    rows = references.load_job_references(
        session, project_id, request.model, request.training_file, request.validation_file
    )
    try:
        base, parent = _find_base_and_parent(session, project_id, request.model, rows.base)
        training_file = _require_file(rows.training_file, request.training_file, "training_file")
        validation_file = None
        if request.validation_file is not None:
            validation_file = _require_file(rows.validation_file, request.validation_file, "validation_file")
    except NotFound:
        if request.problems:
            raise combine_errors(request.problems) from None
        raise
    evaluation_problems = evaluation_requests.problems_of_job(session, project_id, request.body, endpoints)
    if evaluation_problems:
        request = replace(request, problems=[*request.problems, *evaluation_problems])
    spec = _resolve_spec(request, base, parent, training_file, validation_file)
    warnings = [request_warning("without_effect", text) for text in request.warnings]
    if validation_file is not None and validation_file.sha256 == training_file.sha256:
        warnings.append(request_warning("same_file", SAME_FILE))
    return ResolvedRequest(rows.project, base, training_file, validation_file, spec, warnings, deliver_to)


def find_model(session: Session, project_id: str, name: str) -> tuple[BaseModelRow, ParentAdapter | None]:
    return _find_base_and_parent(session, project_id, name, models.get_base(session, project_id, name))


def find_file(session: Session, project_id: str, file_id: str, param: str) -> File:
    return _require_file(files.get(session, project_id, file_id), file_id, param)


def _find_base_and_parent(
    session: Session, project_id: str, name: str, base: BaseModelRow | None
) -> tuple[BaseModelRow, ParentAdapter | None]:
    if base is not None:
        return base, None
    parent = parent_adapter.find_parent_adapter(session, project_id, name)
    if parent is not None:
        return parent
    aliased = model_services.resolve_alias(session, project_id, name)
    if aliased is not None:
        return aliased, None
    raise model_services.model_not_found(name, model_services.available_models(session, project_id))


def _require_file(file: File | None, file_id: str, param: str) -> File:
    if file is None:
        text = f"invalid {param}: {unquoted(file_id)}. No such File object; upload one with purpose fine-tune."
        raise NotFound(text, param)
    return file


def _resolve_spec(
    request: JobRequest,
    base: BaseModelRow,
    parent: ParentAdapter | None,
    training_file: File,
    validation_file: File | None,
) -> JobSpec:
    problems = [*request.problems, *_purpose_problems(training_file, "training_file")]
    problems += _integration_problems(request.integrations)
    if validation_file is not None:
        problems += _purpose_problems(validation_file, "validation_file")
    spec = None
    try:
        entry = base.catalog_entry
        spec = resolve(request.body, base.name, entry, training_file.line_count or 0, parent)
        if parent is None and request.model != base.name:
            spec = spec.model_copy(update={"model_alias": request.model})
        if origins := _file_origins(training_file, validation_file):
            spec = spec.model_copy(update={"file_origins": origins})
    except BadRequest as error:
        problems.append(error)
    if spec is None or problems:
        raise combine_errors(problems)
    return spec


def _file_origins(training_file: File, validation_file: File | None) -> JobFileOrigins:
    files_by_param = {"training_file": training_file, "validation_file": validation_file}
    return {param: file.origin for param, file in files_by_param.items() if file is not None and file.origin}


def require_fine_tune_purpose(file: File, validation_file: File | None, param: str) -> None:
    """Raises BadRequest for files whose purpose is not fine-tune."""
    problems = _purpose_problems(file, param)
    if validation_file is not None:
        problems += _purpose_problems(validation_file, "validation_file")
    if problems:
        raise combine_errors(problems)


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
