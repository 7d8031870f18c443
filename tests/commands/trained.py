"""A finished job whose archives are real: a directory with its manifest, packed as a worker packs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.jobs import claims
from app.db.jobs.leases import lease_of
from app.db.tables import Checkpoint, File, Job, Project
from app.domain.jobs.states import Reason
from app.storage import Storage
from app.system import artifact_directory
from tests.archives import tar_of
from tests.factories import append_step_event, make_file, make_job, results_csv, start_job, validate_job

STEPS = (2, 4)
WEIGHTS = bytes(range(256)) * 2048  # half a megabyte, so that a download has a middle


def make_trained_job(
    session: Session,
    storage: Storage,
    project: Project,
    directory: Path,
    write: Callable[[Path, int], Path] | None = None,
    **job_arguments: Any,
) -> Job:
    make_job(session, project, make_file(session, storage, project), suffix="demo", **job_arguments)
    validate_job(session)
    job = start_job(session)
    base = models.get_base(session, project.id, job.base_model)
    write = write or partial(write_adapter, base_sha256=base.manifest_sha256 if base else "")
    made = [
        _make_checkpoint(session, storage, project, job, step, write(directory / f"step-{step}", step))
        for step in STEPS
    ]
    last, archive = made[-1]
    models.add_tuned(session, job, last)
    results = make_file(session, storage, project, results_csv(4), "fine-tune-results", "step_metrics.csv", job)
    return claims.finish_held_attempt(
        session,
        lease_of(job),
        Reason.DONE,
        "The job has successfully completed",
        trained_tokens=1234,
        fine_tuned_model=last.name,
        result_file_ids=[results.id],
        adapter_sha256=archive.sha256,
        adapter_bytes=archive.bytes,
        adapter_archive_file_id=archive.id,
    )


def write_adapter(directory: Path, step: int = 4, base_sha256: str = "") -> Path:
    """What a trainer leaves: two files and the manifest that names them."""
    directory.mkdir(parents=True)
    (directory / artifact_directory.ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 16, "step": step}))
    (directory / artifact_directory.ADAPTER_WEIGHTS).write_bytes(WEIGHTS)
    lora = {"r": 16, "alpha": 32, "target_modules": ["q_proj", "v_proj"]}
    entries = {"base_model": {"name": "tiny", "manifest_sha256": base_sha256}, "lora": lora, "step": step}
    artifact_directory.write_manifest(directory, entries)
    return directory


def pack(directory: Path) -> Path:
    archive = directory.with_suffix(".tar")
    archive.write_bytes(tar_of(directory))
    return archive


def _make_checkpoint(
    session: Session, storage: Storage, project: Project, job: Job, step: int, adapter: Path
) -> tuple[Checkpoint, File]:
    append_step_event(session, job, step, STEPS[-1], loss=1.0 / step)
    purpose = "fine-tune-results"
    content = pack(adapter).read_bytes()
    archive = make_file(session, storage, project, content, purpose, "adapter.tar", job, line_count=None)
    parts = [
        make_file(session, storage, project, path.read_bytes(), purpose, path.name, job, line_count=None)
        for path in sorted(adapter.iterdir())
    ]
    name = f"ft:tiny:tunery:demo:{job.id[-8:].lower()}" + ("" if step == STEPS[-1] else f":ckpt-step-{step}")
    manifest = artifact_directory.read_manifest(adapter)
    metrics = {"step": step, "train_loss": 1.0 / step}
    file_ids = [part.id for part in parts]
    columns = {"project_id": job.project_id, "job_id": job.id, "attempt": job.attempt, "archive_file_id": archive.id}
    checkpoint = Checkpoint(
        step_number=step, name=name, metrics=metrics, manifest=manifest, file_ids=file_ids, **columns
    )
    session.add(checkpoint)
    session.flush()
    return checkpoint, archive
