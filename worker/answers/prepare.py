"""What a trial answer needs: the rows of its model, the base model's files, and the adapter's."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.engine import transaction
from app.db.files import files
from app.db.tables import BaseModelRow, Checkpoint, File, Job
from app.domain.answers.trial import MAX_ADAPTERS, AdapterOfAnswer, AnswerSpec, TrialQuestion
from app.domain.jobs.layer_patterns import PatternError
from app.domain.jobs.spec import BaseSpec, JobSpec, QuantizationSpec
from app.system.artifact_directory import ManifestMismatch
from worker.jobs import stored_files
from worker.jobs.prepare import PreparationError, verify_base_model
from worker.node.resources import Resources


class CannotAnswer(Exception):
    """The message is the client's."""


@dataclass(frozen=True)
class Prepared:
    spec: AnswerSpec
    adapter: AdapterOfAnswer | None

    @property
    def program(self) -> str:
        """Questions with the same value may be answered by one process.

        DoRA and modules_to_save replace modules of the loaded base model, so such an adapter has a process of its own.
        """
        lora = self.adapter.lora if self.adapter else None
        own = self.adapter.manifest_sha256 if self.adapter and lora and (lora.use_dora or lora.modules_to_save) else ""
        return f"{self.spec.base.manifest_sha256} {self.spec.quantization} {own}"


def prepare(resources: Resources, question: TrialQuestion, directory: Path) -> Prepared:
    """Fetch the adapter into `directory`, once. Raises CannotAnswer, OSError, and what PostgreSQL raises."""
    with transaction(resources.sessions) as session:
        base, job, checkpoint, rows = _load(session, question)
    try:
        signature = verify_base_model(base)
    except PreparationError as error:
        raise CannotAnswer(f"The base model {base.name} cannot be used on this worker: {error}") from error
    entry, settings = base.catalog_entry, resources.settings
    job_spec = JobSpec.model_validate(job.spec) if job else None
    spec = AnswerSpec(
        base=BaseSpec(
            name=base.name,
            directory=Path(base.directory).absolute(),
            manifest_sha256=base.manifest_sha256,
            signature=signature,
        ),
        quantization=job_spec.quantization if job_spec else QuantizationSpec(),
        dtype_is_free=job_spec.dtype_is_free if job_spec else True,
        context_length=entry.context_length,
        device=settings.device,
        threads=settings.threads,
    )
    if checkpoint is None:
        return Prepared(spec, None)
    return Prepared(spec, _adapter(resources, base, rows, directory / checkpoint.id))


def _load(session: Session, question: TrialQuestion) -> tuple[BaseModelRow, Job | None, Checkpoint | None, list[File]]:
    base = models.get_base(session, question.project_id, question.model)
    if base is not None:
        return base, None, None, []
    tuned = models.get_usable(session, question.project_id, question.model)
    if tuned is None:
        raise CannotAnswer(f"The model {question.model} was deleted.")
    job, checkpoint = session.get_one(Job, tuned.job_id), session.get_one(Checkpoint, tuned.checkpoint_id)
    base = models.get_base(session, tuned.project_id, job.base_model)
    if base is None:
        raise CannotAnswer(f"The base model {job.base_model} is no longer registered.")
    rows = [files.get_even_deleted(session, file_id) for file_id in checkpoint.file_ids]
    return base, job, checkpoint, [row for row in rows if row is not None]


def _make_room(directory: Path) -> None:
    """Delete what was not fetched completely, and the adapters that were not used for the longest time."""
    for partial in directory.glob("*.part"):
        shutil.rmtree(partial, ignore_errors=True)
    last_used_first = sorted(directory.glob("*"), key=lambda each: each.stat().st_mtime, reverse=True)
    for adapter in last_used_first[MAX_ADAPTERS - 1 :]:
        shutil.rmtree(adapter, ignore_errors=True)


def _adapter(resources: Resources, base: BaseModelRow, rows: list[File], directory: Path) -> AdapterOfAnswer:
    try:
        if not directory.exists():  # a checkpoint never changes
            _make_room(directory.parent)
            partial = directory.with_suffix(".part")
            partial.mkdir(parents=True)
            stored_files.fetch_adapter(resources, rows, partial)
            partial.rename(directory)
        os.utime(directory)  # for `_make_room`
        fetched = stored_files.read_adapter(directory)
    except ManifestMismatch as error:
        raise CannotAnswer(f"The adapter is incomplete or altered: {error}") from error
    if fetched.base_manifest_sha256 != base.manifest_sha256:
        raise CannotAnswer(f"The files registered as {base.name} are not those that the adapter was trained on.")
    try:
        lora = stored_files.layer_lora(fetched, base)
    except PatternError as error:
        raise CannotAnswer(f"The adapter cannot be used: {error}.") from error
    return AdapterOfAnswer(directory=fetched.directory, manifest_sha256=fetched.manifest_sha256, lora=lora)
