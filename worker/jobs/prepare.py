"""Prepare a claimed job: fill the work directory with its datasets, snapshot, parent adapter and spec file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy.orm import Session

from app.db import files
from app.db.jobs import checkpoints
from app.db.jobs.claims import NoLongerDesiredError
from app.db.scheduling import gpu_reservations, measurements
from app.db.tables import BaseModelRow, File, Job, JobTokens, Snapshot
from app.domain.artifacts.full_disk import DiskSpace, is_disk_full
from app.domain.base_models.catalog import RefusedModel
from app.domain.jobs.layer_patterns import PatternError, match_spec
from app.domain.jobs.spec import BaseSpec, JobSpec, LoraSpec, RunSpec, TrainerSpec
from app.domain.jobs.states import Reason
from app.domain.planning.execution_plan import Measurement
from app.log import get_logger
from app.settings import Settings
from app.system.artifact_directory import ManifestMismatch
from worker.jobs import job_tokens, stored_files
from worker.jobs.base_and_adapter import (
    AttemptFailed,
    FetchedAdapter,
    fetch_adapter,
    layers_of,
    load_base,
    load_files,
    unusable_base,
    verify_base,
)
from worker.jobs.exit_classification import AttemptOutcome
from worker.jobs.lease import AttemptInterrupted, JobAttempt
from worker.jobs.sanitize import clean_text
from worker.node import disk_space
from worker.node.device import training_device
from worker.node.resources import Resources

log = get_logger(__name__)


class PreparationError(Exception):
    """The attempt ends before its trainer starts; `outcome` has the reason."""

    def __init__(self, outcome: AttemptOutcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


def failure_outcome(attempt: JobAttempt, error: Exception, needed_bytes: int | None = None) -> AttemptOutcome:
    """The outcome of a job's attempt that ended with an error; `needed_bytes` of disk space, if that is known.

    An error of files or storage is not blamed on the job: a later try may succeed.
    """
    match error:
        case PreparationError():
            return error.outcome
        case AttemptFailed():
            reason = Reason.MODEL_UNAVAILABLE if error.code == Reason.MODEL_UNAVAILABLE else Reason.SERVER_ERROR
            return AttemptOutcome(reason, error.message, "model")
        case AttemptInterrupted():
            return AttemptOutcome(
                Reason.DRAINED, "The worker shut down before the training began; the job is tried again"
            )
        case NoLongerDesiredError():
            return AttemptOutcome(Reason.PAUSED, "The job was paused while its result was being published")
        case ManifestMismatch():
            text = f"The trainer's result is incomplete or altered: {error}"
            return AttemptOutcome(Reason.TRAINER_CRASHED, clean_text(text))
        case OSError():
            log.error("files or storage failed", exc_info=error)
            if is_disk_full(error):
                return disk_space.disk_full_outcome(attempt.resources, attempt.directory, needed_bytes, error)
            why = f": {error.strerror}" if error.strerror else ""  # which names no path
            text = f"Files could not be read or written{why}; the job will be retried"
            return AttemptOutcome(Reason.STORAGE_UNAVAILABLE, text)
    log.error("the attempt failed", exc_info=error)
    return AttemptOutcome(Reason.TRAINER_CRASHED, "The worker had an internal error; its log has the details")


@dataclass(frozen=True)
class Inputs:
    """The rows a job needs, read in one transaction."""

    base: BaseModelRow
    training_file: File
    validation_file: File | None
    snapshots: list[Snapshot]
    tokens: JobTokens | None
    parent_adapter_files: list[File] | None
    measurements: list[Measurement]
    memory_kills: int
    slot_bytes: int | None  # the budget of a slot that shares its GPU; None: the job has the whole GPU


def prepare(attempt: JobAttempt) -> DiskSpace:
    """Fill the directory, write its spec.json and reserve space for the last snapshot. Returns the space the job needs.

    Raises PreparationError, AttemptFailed, FencedError, OSError.
    """
    resources, job, directory = attempt.resources, attempt.row, attempt.directory
    device, gpus = training_device(resources.settings.device), resources.settings.gpus_per_job
    inputs = attempt.transact(lambda session: load_inputs(session, job, device.name, gpus))
    base = verify_base(inputs.base)
    needed = reserve_space(attempt, inputs.base)
    attempt.check()
    training_file = fetch_dataset(resources, inputs.training_file, directory / "training.jsonl")
    validation_file = None
    if inputs.validation_file is not None:
        validation_file = fetch_dataset(resources, inputs.validation_file, directory / "validation.jsonl")
    attempt.check()
    adapter = None
    if inputs.parent_adapter_files is not None:
        adapter = fetch_adapter(resources.storage, inputs.parent_adapter_files, inputs.base, directory)
    attempt.check()
    datasets = {"training": inputs.training_file}
    if inputs.validation_file is not None:
        datasets["validation"] = inputs.validation_file
    tokens = job_tokens.fetch(resources.storage, inputs.tokens, datasets, directory)
    resume_from = stored_files.restore_snapshot(attempt, inputs.snapshots)
    spec = trainer_spec(
        resources.settings, job, inputs, base, training_file, validation_file, resume_from, adapter, tokens
    )
    (directory / "spec.json").write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return needed


def reserve_space(attempt: JobAttempt, base: BaseModelRow) -> DiskSpace:
    """Reserve the space of the last snapshot. After a full disk the result must have space, too, because otherwise the
    training would be lost. Raises PreparationError, AttemptFailed."""
    resources, job, directory = attempt.resources, attempt.row, attempt.directory
    entry, spec = base.catalog_entry, JobSpec.model_validate(job.spec)
    try:
        needed = disk_space.required_space(entry, Path(base.directory), spec)
    except RefusedModel as error:
        raise unusable_base(base.name, str(error)) from error
    if job.storage_full_since is not None:
        outcome = disk_space.shortage_outcome(resources, directory, needed.next_attempt_bytes)
        if outcome is not None:
            raise PreparationError(outcome)
    try:
        if job.storage_full_since is not None:
            resources.storage.check(needed.next_attempt_bytes)
        disk_space.reserve(attempt, needed)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise PreparationError(
            disk_space.disk_full_outcome(resources, directory, needed.snapshot_bytes, error)
        ) from error
    return needed


def load_inputs(session: Session, job: Job, device_name: str = "", gpus: int = 1) -> Inputs:
    """Load the rows. Raises AttemptFailed if an operator has removed the base model in the meantime."""
    base = load_base(session, job.project_id, job.base_model)
    training_file = files.get_even_deleted(session, job.training_file_id)
    assert training_file is not None, "a foreign key protects it"
    validation_file = files.get_even_deleted(session, job.validation_file_id) if job.validation_file_id else None
    spec, parent_adapter_files = JobSpec.model_validate(job.spec), None
    if (parent := spec.continued_from) is not None:  # checkpoints are retired, never deleted
        parent_adapter_files = load_files(session, checkpoints.by_names(session, [parent])[parent].file_ids)
    return Inputs(
        base=base,
        training_file=training_file,
        validation_file=validation_file,
        snapshots=checkpoints.snapshots(session, job.id),
        tokens=checkpoints.job_tokens(session, job.id),
        parent_adapter_files=parent_adapter_files,
        measurements=measurements.similar(
            session, device_name, gpus, base.manifest_sha256, spec.quantization, spec.method
        ),
        memory_kills=measurements.count_memory_kills(session, job.id),
        slot_bytes=gpu_reservations.slot_bytes(session, job.id, job.attempt),
    )


def fetch_dataset(resources: Resources, file: File, destination: Path) -> Path:
    """Copy a dataset to `destination`. Raises PreparationError if storage has lost or altered it."""
    try:
        sha256 = stored_files.fetch(resources.storage, file.storage_key, destination)
    except FileNotFoundError as error:
        raise lost_file_error(file) from error
    if sha256 != file.sha256:
        text = f"The content of {file.id} in storage differs from what was uploaded"
        raise PreparationError(AttemptOutcome(Reason.SERVER_ERROR, text))
    return destination


def lost_file_error(file: File) -> PreparationError:
    return PreparationError(AttemptOutcome(Reason.SERVER_ERROR, f"The content of {file.id} is missing in storage"))


def trainer_spec(
    settings: Settings,
    job: Job,
    inputs: Inputs,
    base: BaseSpec,
    training_file: Path,
    validation_file: Path | None,
    resume_from: Path | None,
    adapter: FetchedAdapter | None = None,
    tokens: Mapping[str, Any] = MappingProxyType({}),
) -> TrainerSpec:
    """The spec of the job's trainer, with one run that has the job's id. Raises PreparationError."""
    spec = JobSpec.model_validate(job.spec)
    run = RunSpec(
        run_id=job.id,
        method=spec.method,
        line_rules=spec.line_rules,
        lora=_layer_lora(spec, inputs.base),
        hyperparameters=spec.hyperparameters,
        seed=spec.seed,
        file_origins=spec.file_origins,
        training_file=training_file,
        training_file_sha256=inputs.training_file.sha256,
        validation_file=validation_file,
        validation_file_sha256=inputs.validation_file.sha256 if inputs.validation_file else None,
        resume_from=resume_from,
        chat_template_kwargs=spec.chat_template_kwargs,
        sample_prompts=spec.sample_prompts,
        start_adapter=adapter.directory if adapter else None,
        start_adapter_sha256=adapter.manifest_sha256 if adapter else None,
        start_adapter_name=spec.continued_from,
        **tokens,
    )
    entry = inputs.base.catalog_entry
    described = {
        "alias": spec.model_alias,
        "source": entry.source,
        "revision": entry.revision,
        "entry": entry if entry.decoder_layers else None,  # entries of older releases lack what plans need
    }
    return TrainerSpec.model_validate(
        {
            "base": base.model_copy(update=described),
            "quantization": spec.quantization,
            "runs": (run,),
            "snapshot_interval_seconds": settings.snapshot_interval_seconds,
            "device": settings.device,
            "worker_has_gpu": training_device(settings.device).kind == "cuda",
            "threads": settings.threads,
            "dtype_is_free": spec.dtype_is_free,
            "world_size": settings.gpus_per_job,
            "measurements": tuple(inputs.measurements),
            "out_of_memory_kills": inputs.memory_kills,
            "memory_budget_bytes": inputs.slot_bytes,
            "cuda_kernels": settings.cuda_kernels,
        }
    )


def _layer_lora(spec: JobSpec, base: BaseModelRow) -> LoraSpec:
    """The LoRA spec, with rank and alpha patterns resolved to single layers.

    Patterns that were not matched when the job was created (older jobs, unknown layers) are matched here.
    Raises PreparationError.
    """
    if not (spec.lora.rank_pattern or spec.lora.alpha_pattern):
        return spec.lora
    try:
        return match_spec(spec, layers_of(base)).layer_lora
    except PatternError as error:
        raise PreparationError(AttemptOutcome(Reason.INVALID_SPEC, f"{error}.", error.problems[0].param)) from error
