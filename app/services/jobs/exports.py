"""Use cases of exports: create, read, delete. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.db import files
from app.db.jobs import exports
from app.db.scheduling import workers
from app.db.tables import BaseModelRow, Checkpoint, Export, Job
from app.domain.artifacts.exports import (
    CreateExport,
    ExportKind,
    ExportType,
    gguf_adapter_problem,
    gguf_bytes,
)
from app.domain.error_text.validation_text import check_shape
from app.domain.jobs.spec import LoraSpec
from app.domain.jobs.states import WorkState
from app.errors import BadRequest, combine_errors
from app.job_queue import Queue, WorkerNotifier
from app.services import resources
from app.services.access import quotas
from app.services.jobs.records import lock_files, select_checkpoint, trained_base
from app.services.resources import Page
from app.telemetry.tracing import link_to

QUEUES: tuple[Queue, ...] = ("cpu", "gpu")  # a deployment may have torch only on the workers of one queue


def create(session: Session, notifier: WorkerNotifier, job: Job, body: Mapping[str, Any]) -> Export:
    """Create an export, or return the queued, running or complete one of the same checkpoint and kind.

    Raises BadRequest, QuotaExceeded.
    """
    request = _parse(body)
    kind, checkpoint = request.kind, select_checkpoint(session, job, request.checkpoint, "export")
    base = trained_base(session, job.project_id, job, checkpoint)
    if isinstance(base, str):
        raise BadRequest(f"The adapter cannot be exported: {base}; ask its operator.", "model", "model_unavailable")
    lora = LoraSpec.model_validate(checkpoint.manifest.get("lora") or job.spec["lora"])
    if lora.adapts_experts:  # a worker could neither merge nor convert it
        text = "This adapter adapts experts, and no export contains them. PEFT merges it: "
        text += "PeftModel.from_pretrained(base, adapter).merge_and_unload()."
        raise BadRequest(text, None, "unsupported_value")
    if kind.type == ExportType.GGUF_ADAPTER and (problem := gguf_adapter_problem(lora)):
        raise BadRequest(f'type: {problem}: {{"type": "{ExportType.GGUF}"}}.', "type", "unsupported_value")
    existing = exports.lock_current(session, checkpoint.name, kind)
    if existing is not None:
        if existing.state != WorkState.SUCCEEDED or len(existing.files) == len(existing.file_ids):
            return _with_worker(session, existing)[0]
        delete(session, existing)
    lock_files(session, checkpoint, "export")
    expected_bytes = _expected_bytes(session, kind, base, checkpoint)
    quotas.require_storage(session, job.project_id, expected_bytes)
    link_to(job.traceparent)
    export = exports.insert(session, job, checkpoint, kind, expected_bytes)
    if export is None:  # a concurrent request has created it
        export = exports.lock_current(session, checkpoint.name, kind)
        assert export is not None, "a conflict with the unique index means that there is one"
    for queue in QUEUES:
        notifier.after_commit(session, queue)
    return _with_worker(session, export)[0]


def get(session: Session, job: Job, export_id: str) -> Export:
    export = resources.get(session, Export, export_id, Export.job_id == job.id, Export.deleted_at.is_(None))
    return _with_worker(session, export)[0]


def page(session: Session, job: Job, page: Page) -> list[Export]:
    """The exports, newest first. `after` may be a deleted one, as clients delete exports while they page."""
    existing = (Export.deleted_at.is_(None),)
    return _with_worker(session, *resources.page(session, Export, *page, Export.job_id == job.id, only=existing))


def delete(session: Session, export: Export) -> None:
    """Delete an export and its files; a running attempt is fenced."""
    exports.delete(session, export)
    files.delete_all(session, export.file_ids)


def _parse(body: Mapping[str, Any]) -> CreateExport:
    given = {key: value for key, value in body.items() if key != "type" or value is not None}
    request, found = check_shape(CreateExport, given)
    problems = [
        BadRequest(each.message, each.param, "unsupported_value") if each.code == "invalid_value" else each
        for each in found
    ]
    if body.get("quantization") is not None and body.get("type") != ExportType.GGUF:
        text = f"quantization: only exports of type {ExportType.GGUF} have one; omit it"
        problems.append(BadRequest(text, "quantization"))
    if request is None or problems:
        raise combine_errors(problems)
    return request


def _expected_bytes(session: Session, kind: ExportKind, base: BaseModelRow, checkpoint: Checkpoint) -> int:
    if kind.quantization is not None:
        return gguf_bytes(base.catalog_entry.parameters, kind.quantization)
    if kind.type == ExportType.GGUF_ADAPTER:
        return sum(file.bytes for file in files.get_visible(session, checkpoint.file_ids).values())
    return sum(int(each["bytes"]) for each in base.files.values())


def _with_worker(session: Session, *page: Export) -> list[Export]:
    """The exports, each with the fact whether a running worker makes its type; only a GGUF export may lack one."""
    waiting = [each for each in page if each.state == WorkState.QUEUED and each.type != ExportType.MERGED]
    types = workers.supported_exports(session) if waiting else frozenset()
    for export in waiting:
        export.has_worker = export.type in types
    return list(page)
