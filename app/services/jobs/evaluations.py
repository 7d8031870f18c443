"""Use cases of evaluations: create, cancel, read rows. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.jobs import evaluations
from app.db.tables import Evaluation, Job
from app.domain.error_text.json_text import as_json
from app.domain.evaluations import results
from app.domain.evaluations.graders import CreateEvaluation, EvaluationSettings
from app.domain.evaluations.results import ResultIndex, RowVerdict, index_rows, page_of
from app.domain.jobs.states import WorkState
from app.errors import BadRequest, combine_errors
from app.job_queue import WorkerNotifier
from app.services import resources
from app.services.access import quotas
from app.services.files import files
from app.services.jobs.records import lock_files, select_checkpoint
from app.services.jobs.requests import find_evaluation_file, grader_problems
from app.services.resources import Page
from app.storage import Storage
from app.telemetry.tracing import link_to

MAX_SCANNED_BYTES = 16 << 20  # of a results file without an index, which each page reads up to its end
MAX_UNFINISHED = 50  # of a project: evaluations share the workers with training jobs


def create(
    session: Session, notifier: WorkerNotifier, job: Job, request: CreateEvaluation, endpoints: Collection[str]
) -> Evaluation:
    """Create an evaluation of the job's result, or of a kept checkpoint. Raises BadRequest, QuotaExceeded."""
    project_id = job.project_id
    problems = grader_problems(request, endpoints)
    file = find_evaluation_file(session, project_id, request.file, "file", problems)
    checkpoint = None
    try:
        checkpoint = select_checkpoint(session, job, request.checkpoint, "evaluate")
        lock_files(session, checkpoint, "evaluate")
    except BadRequest as problem:
        problems.append(problem)
    if models.get_base(session, project_id, job.base_model) is None:
        text = f"The base model {as_json(job.base_model)} is no longer registered; its operator can register it again."
        problems.append(BadRequest(text, "model", "model_unavailable"))
    if problems:
        raise combine_errors(problems)
    assert file is not None
    assert checkpoint is not None
    remedy = "wait for some, or cancel one"
    limit, count = "max_unfinished_evaluations", evaluations.unfinished_count
    quotas.require_room(session, project_id, limit, MAX_UNFINISHED, count, remedy)
    link_to(job.traceparent)
    evaluation = evaluations.insert(session, job, checkpoint, file, request.settings())
    notifier.after_commit(session, "gpu")
    return evaluation


def cancel(session: Session, evaluation: Evaluation) -> Evaluation:
    """Cancel at once, also a running evaluation; no error if it is cancelled already. Raises BadRequest."""
    if not evaluations.cancel(session, evaluation) and evaluation.state != WorkState.CANCELLED:
        text = f"Evaluation {evaluation.id} is {evaluation.state}; only one that has not ended can be cancelled."
        raise BadRequest(text, code="invalid_evaluation_state")
    session.refresh(evaluation)
    return evaluation


def read_rows(
    session: Session, storage: Storage, evaluation: Evaluation, page: Page, verdict: RowVerdict | None
) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a page, in the order of the results file, and whether others follow; none until it has succeeded.

    Raises BadRequest, NotFound.
    """
    if evaluation.results_file_id is None:
        return [], False
    file = files.get(session, evaluation.project_id, evaluation.results_file_id)
    with files.open_content(storage, file) as content:
        if evaluation.row_index is not None:
            index = ResultIndex.model_validate(evaluation.row_index)
        elif file.bytes <= MAX_SCANNED_BYTES:  # of an earlier release
            index = index_rows(content, EvaluationSettings.model_validate(evaluation.settings))
        else:
            raise BadRequest(
                f"The results of evaluation {evaluation.id} have {file.bytes:,} bytes and no index, so their rows "
                f"cannot be listed. Download the file {file.id}."
            )
        is_number = page.after is None or (page.after.isascii() and page.after.isdecimal() and len(page.after) < 10)
        if not is_number:
            raise resources.unknown_cursor_error("row", page.after or "")
        numbers, has_more = page_of(index, int(page.after or 0), page.limit, verdict)
        return list(results.read_rows(content, index, numbers)), has_more
