"""From a claimed job to a directory that a trainer can start on: data set, snapshot, spec file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sqlalchemy.orm import Session

from app.db import models
from app.db.files import files
from app.db.jobs import checkpoints, measurements
from app.db.tables import BaseModelRow, File, Job, Snapshot
from app.domain.artifacts.full_disk import Space, is_disk_full
from app.domain.base_models.catalog import ALTERED, CatalogEntry, RefusedModel, Signature, unusable
from app.domain.jobs.layer_patterns import PatternError, match_spec
from app.domain.jobs.spec import BaseSpec, JobSpec, LoraSpec, RunSpec, TrainerSpec
from app.domain.jobs.states import Reason
from app.domain.planning.execution_plan import Measurement
from app.settings import Settings
from app.system.artifact_directory import ManifestMismatch
from app.system.model_files import hash_directory, linear_layers, stat_signature
from worker.jobs import artifacts, parent_adapter, snapshots
from worker.jobs.exit_classification import Outcome
from worker.jobs.lease import LeaseKeeper
from worker.jobs.parent_adapter import StartAdapter
from worker.node import space
from worker.node.device import training_device
from worker.node.resources import Resources


class CannotStart(Exception):
    """The attempt ends before it began; the outcome says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


@dataclass(frozen=True)
class Inputs:
    """The rows a job needs, read in one transaction."""

    base: BaseModelRow
    training_file: File
    validation_file: File | None
    snapshots: list[Snapshot]
    ancestor_files: list[File] | None  # of the adapter to go on from
    measurements: list[Measurement]
    memory_kills: int


def prepare(resources: Resources, job: Job, keeper: LeaseKeeper, directory: Path) -> Space:
    """Fill `directory`, write its spec.json and reserve space for the last snapshot; what the job writes, in bytes.

    Raises CannotStart, FencedError, OSError.
    """
    device = training_device(resources.settings.device)
    inputs = keeper.transact(lambda session: load_inputs(session, job, device.name))
    assert inputs is not None
    signature = check_base(inputs.base)
    needed = reserve_space(resources, job, inputs.base, directory)
    keeper.check()
    training_file = fetch_dataset(resources, inputs.training_file, directory / "training.jsonl")
    validation_file = None
    if inputs.validation_file is not None:
        validation_file = fetch_dataset(resources, inputs.validation_file, directory / "validation.jsonl")
    keeper.check()
    start = None
    if inputs.ancestor_files is not None:
        start = fetch_ancestor(resources, inputs.ancestor_files, inputs.base, directory)
    keeper.check()
    resume_from = snapshots.restore(resources, job, keeper, inputs.snapshots, directory)
    spec = trainer_spec(resources.settings, job, inputs, signature, training_file, validation_file, resume_from, start)
    (directory / "spec.json").write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return needed


def reserve_space(resources: Resources, job: Job, base: BaseModelRow, directory: Path) -> Space:
    """For the last snapshot; after a full disk only where there is space for the result, too, as the trainer would
    work in vain. Raises CannotStart."""
    entry, spec = CatalogEntry.model_validate(base.entry), JobSpec.model_validate(job.spec)
    try:
        needed = space.needed(entry, Path(base.directory), spec)
    except RefusedModel as error:
        raise base_unusable(base.name, str(error)) from error
    if job.storage_full_since is not None and (outcome := space.shortage(resources, directory, needed.next_try_bytes)):
        raise CannotStart(outcome)
    try:
        space.reserve(resources, job, directory, needed)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise CannotStart(space.full(resources, directory, needed.snapshot_bytes, error)) from error
    return needed


def load_inputs(session: Session, job: Job, device_name: str = "") -> Inputs:
    """Raises CannotStart when an operator has removed the base model meanwhile."""
    base = models.get_base(session, job.project_id, job.base_model)
    if base is None:
        raise base_unusable(job.base_model, "it is not registered any more")
    training_file = files.get_even_deleted(session, job.training_file_id)
    assert training_file is not None, "a foreign key holds it"
    validation_file = files.get_even_deleted(session, job.validation_file_id) if job.validation_file_id else None
    spec = JobSpec.model_validate(job.spec)
    return Inputs(
        base=base,
        training_file=training_file,
        validation_file=validation_file,
        snapshots=checkpoints.snapshots(session, job.id),
        ancestor_files=parent_adapter.load(session, job),
        measurements=measurements.similar(session, device_name, base.manifest_sha256, spec.quantization, spec.method),
        memory_kills=measurements.count_memory_kills(session, job.id),
    )


def check_base(base: BaseModelRow) -> Signature:
    """The base model's files are those that were registered, to the byte. Raises CannotStart."""
    directory = Path(base.directory)
    try:
        signature = stat_signature(directory)  # before the hash: a change meanwhile makes the trainer hash again
        sha256 = _hash_unchanged(directory, signature)
    except OSError as error:
        raise base_unusable(base.name, f"its files cannot be read on this worker ({error.strerror})") from error
    if sha256 != base.manifest_sha256:
        raise base_unusable(base.name, ALTERED)
    return signature


def base_unusable(name: str, why: str) -> CannotStart:
    return CannotStart(Outcome(Reason.MODEL_UNAVAILABLE, unusable(name, why), "model"))


def fetch_dataset(resources: Resources, file: File, destination: Path) -> Path:
    """Raises CannotStart when storage has lost or altered it."""
    try:
        sha256 = artifacts.fetch(resources.storage, file.storage_key, destination)
    except FileNotFoundError as error:
        raise CannotStart(Outcome(Reason.SERVER_ERROR, f"The bytes of {file.id} are gone from storage")) from error
    if sha256 != file.sha256:
        raise CannotStart(Outcome(Reason.SERVER_ERROR, f"The bytes of {file.id} are not those that were uploaded"))
    return destination


def fetch_ancestor(resources: Resources, rows: list[File], base: BaseModelRow, directory: Path) -> StartAdapter:
    """Raises CannotStart when its bytes are not what was published, or belong to another base model."""
    try:
        start = parent_adapter.fetch(resources, rows, directory)
    except ManifestMismatch as error:
        text = f"The adapter to go on from is not whole: {error}"
        raise CannotStart(Outcome(Reason.SERVER_ERROR, text, "model")) from error
    if start.base_manifest_sha256 != base.manifest_sha256:
        text = f"The adapter to go on from was trained on other files than those registered as {base.name!r}"
        raise CannotStart(Outcome(Reason.MODEL_UNAVAILABLE, text, "model"))
    return start


def trainer_spec(
    settings: Settings,
    job: Job,
    inputs: Inputs,
    signature: Signature,
    training_file: Path,
    validation_file: Path | None,
    resume_from: Path | None,
    start: StartAdapter | None = None,
) -> TrainerSpec:
    """A list of one run; its id is the job's. Raises CannotStart."""
    spec = JobSpec.model_validate(job.spec)
    run = RunSpec(
        run_id=job.id,
        method=spec.method,
        line_rules=spec.line_rules,
        lora=_layer_lora(spec, inputs.base),
        hyperparameters=spec.hyperparameters,
        seed=spec.seed,
        training_file=training_file,
        training_file_sha256=inputs.training_file.sha256,
        validation_file=validation_file,
        validation_file_sha256=inputs.validation_file.sha256 if inputs.validation_file else None,
        resume_from=resume_from,
        sample_prompts=spec.sample_prompts,
        start_adapter=start.directory if start else None,
        start_adapter_sha256=start.manifest_sha256 if start else None,
        start_adapter_name=spec.continued_from,
    )
    base = BaseSpec(
        name=inputs.base.name,
        directory=Path(inputs.base.directory).absolute(),
        manifest_sha256=inputs.base.manifest_sha256,
        signature=signature,
    )
    return TrainerSpec.model_validate(
        {
            "base": base,
            "quantization": spec.quantization,
            "runs": (run,),
            "snapshot_interval_seconds": settings.snapshot_interval_seconds,
            "device": settings.device,
            "threads": settings.threads,
            "dtype_is_free": spec.dtype_is_free,
            "world_size": settings.gpus_per_job,
            "measurements": tuple(inputs.measurements),
            "out_of_memory_kills": inputs.memory_kills,
        }
    )


def _layer_lora(spec: JobSpec, base: BaseModelRow) -> LoraSpec:
    """With patterns by single layers; those not matched at creation (older jobs, unknown layers) are matched here.

    Raises CannotStart.
    """
    if not (spec.lora.rank_pattern or spec.lora.alpha_pattern):
        return spec.lora
    layers = CatalogEntry.model_validate(base.entry).layers or linear_layers(Path(base.directory))
    try:
        return match_spec(spec, layers).layer_lora
    except PatternError as error:
        raise CannotStart(Outcome(Reason.INVALID_SPEC, f"{error}.", error.problems[0].param)) from error


@lru_cache(maxsize=64)
def _hash_unchanged(directory: Path, signature: Signature) -> str:
    del signature  # the key of the cache, no more
    return hash_directory(directory)[1]
