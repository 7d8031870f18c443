"""One `make_...` function per kind of row; rows are valid by default and inserted by the functions of production.

A job reaches a later state as with a worker: it is claimed, gets events, and ends with a reason.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session

from app.db import encryption, files
from app.db.base_models import models
from app.db.deliveries import deliveries
from app.db.ids import new_id
from app.db.jobs import checkpoints, claims, evaluations, jobs, leases, lost_workers
from app.db.jobs.leases import Lease, lease_of
from app.db.scheduling import fair_queue, queue_positions
from app.db.tables import (
    ApiKey,
    Checkpoint,
    Delivery,
    DeliveryTarget,
    Evaluation,
    Export,
    File,
    Job,
    Project,
    Upload,
    UploadPart,
    WebhookEndpoint,
)
from app.db.tables.base import Leased
from app.domain.access.api_keys import hash_key
from app.domain.base_models import catalog
from app.domain.jobs.definitions import ParentAdapter
from app.domain.jobs.resolve import resolve
from app.domain.jobs.states import Reason
from app.domain.scheduling.forecast import forecast
from app.domain.scheduling.worker_capacity import WorkerCapacity
from app.domain.webhooks import EVENT_TYPES, new_secret, secret_hint
from app.services.access import keys, projects
from app.storage import Storage
from app.system import artifact_directory, model_files
from tests.tiny import make_tiny_base

BASE_MODEL = "tiny"
WORKER = "test-worker#1"
TTL_SECONDS = 300.0
BUCKET = {"kind": "s3"}
NUMBERS = itertools.count(1)


def chat_lines(examples: int = 12) -> bytes:
    """A valid chat dataset."""
    lines = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"it is {n}"}]}
        for n in range(examples)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def make_project(session: Session, name: str = projects.DEFAULT_PROJECT) -> Project:
    return projects.ensure(session, name)


def make_key(session: Session, project: Project, name: str = "test") -> str:
    """Create a key; return its secret, as in an Authorization header."""
    return keys.issue(session, project, name).secret or ""


def find_key(session: Session, secret: str) -> ApiKey | None:
    """The usable key with this secret, or with this previous secret while a rotation overlaps."""
    digest, now = hash_key(secret), func.clock_timestamp()
    is_previous = and_(ApiKey.previous_secret_sha256 == digest, ApiKey.previous_expires_at > now)
    is_usable = and_(ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now))
    return session.scalar(select(ApiKey).where(or_(ApiKey.secret_sha256 == digest, is_previous), is_usable))


def make_base_model(session: Session, directory: Path, name: str = BASE_MODEL, **config: Any) -> catalog.CatalogEntry:
    """Write a tiny random model into `directory` and register it for every project."""
    make_tiny_base(directory, **config)
    entry = model_files.read_catalog_entry(directory)
    described, manifest_sha256 = model_files.hash_directory(directory)
    models.register(session, name, directory, described, manifest_sha256, entry)
    return entry


def make_file(
    session: Session,
    storage: Storage,
    project: Project,
    content: bytes | None = None,
    purpose: str = "fine-tune",
    filename: str = "train.jsonl",
    job: Job | None = None,
    **columns: Any,
) -> File:
    """Create a file with its bytes in `storage`; a chat dataset unless `content` is given."""
    content = chat_lines() if content is None else content
    return files.insert(session, _stored(storage, project, content, purpose, filename, job, **columns))


def _stored(
    storage: Storage, project: Project, content: bytes, purpose: str, filename: str, job: Job | None, **columns: Any
) -> File:
    """The row of a file whose bytes are in `storage`."""
    file_id = new_id("file")
    put_bytes(storage, f"files/{file_id}", content)
    columns = {"line_count": sum(1 for line in content.split(b"\n") if line.strip())} | columns
    return File(
        id=file_id,
        project_id=project.id,
        job_id=job.id if job else None,
        purpose=purpose,
        filename=filename,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        storage_key=f"files/{file_id}",
        **columns,
    )


def make_upload(session: Session, project: Project, **columns: Any) -> Upload:
    """Create a pending upload that expires in an hour."""
    defaults = {"filename": "a", "purpose": "batch", "mime_type": "text/plain", "bytes": 0}
    upload = Upload(id=new_id("upload", "_"), project_id=project.id, **defaults | columns)
    upload.expires_at = func.clock_timestamp() + timedelta(hours=1)
    session.add(upload)
    session.flush()
    session.refresh(upload)
    return upload


def add_part(session: Session, upload: Upload, content: bytes, key: str) -> None:
    """Add the row of a part to an upload."""
    columns = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "storage_key": key}
    session.add(UploadPart(id=new_id("part", "_"), project_id=upload.project_id, upload_id=upload.id, **columns))
    session.flush()


def put_bytes(storage: Storage, key: str, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=storage.staging, delete=False) as staged:
        staged.write(content)
    storage.put(key, Path(staged.name))


def make_job(
    session: Session,
    project: Project,
    training_file: File,
    base_model: str = BASE_MODEL,
    body: Mapping[str, Any] | None = None,
    validation_file: File | None = None,
    suffix: str | None = None,
    metadata: Mapping[str, str] | None = None,
    parent: ParentAdapter | None = None,
    integrations: list[dict[str, Any]] | None = None,
) -> Job:
    """A job in `validating_files`. Its base model must be registered; `body` has parameters of a create body."""
    row = models.get_base(session, project.id, base_model)
    assert row is not None, f"register {base_model!r} first: make_base_model(session, directory)"
    entry = catalog.CatalogEntry.model_validate(row.entry)
    files_of_body = {"validation_file": validation_file.id} if validation_file else {}
    request = {"seed": 7} | files_of_body | dict(body or {})
    spec = resolve(request, base_model, entry, training_file.line_count or 1, parent)
    job = Job(
        project_id=project.id,
        base_model=base_model,
        spec=spec.model_dump(mode="json"),
        training_file_id=training_file.id,
        validation_file_id=validation_file.id if validation_file else None,
        suffix=suffix,
        user_metadata=dict(metadata) if metadata is not None else None,
        integrations=integrations,
    )
    return session.get_one(Job, jobs.insert(session, job).id)


def validate_job(session: Session, owner: str = WORKER) -> Job:
    """Claim and finish the oldest waiting validation; return the job, now `queued`."""
    job = claims.claim(session, "validate", owner, TTL_SECONDS)
    assert job is not None, "no job waits for validation"
    return claims.finish_validation(session, lease_of(job), "Files validated, moving job to queued state")


def start_job(session: Session, owner: str = WORKER) -> Job:
    """Claim the next queued job; return it, now `running`."""
    job = claims.claim(session, "train", owner, TTL_SECONDS)
    assert job is not None, "no job waits for a worker"
    return job


def expire_leases(session: Session) -> None:
    """Let the leases of all kinds of work have expired an hour ago."""
    for table in leases.LEASED_TABLES:
        held = update(table).where(table.lease_owner.is_not(None))
        session.execute(held.values(lease_expires_at=leases.expiry(-3600)))


def reap_expired(session: Session, max_streak: int = 3) -> list[Leased]:
    """End the attempts whose leases have expired, as the reconciler does."""
    expired = [leases.lock_unrenewed(session, each) for each in leases.held(session) if each.is_expired]
    rows = [row for row in expired if row is not None]
    for row in rows:
        lost_workers.end_attempt(session, row, leases.Retries(0, max_streak))
    return rows


def fail_attempt(session: Session, table: type[Export | Evaluation], lease: Lease, code: str, message: str) -> None:
    """End the held attempt and its row with an error."""
    row = leases.lock_held(session, table, lease)
    end = evaluations.end_attempt if isinstance(row, Evaluation) else leases.end_attempt
    end(session, row, code, message, None)  # type: ignore[arg-type]


def forecast_queue(session: Session, *slots: WorkerCapacity, running_seconds: Sequence[float] = ()) -> None:
    """Write the queue positions, as the reconciler does every few seconds."""
    waiting, shares = fair_queue.waiting_jobs(session), fair_queue.project_shares(session)
    positions = forecast(slots, running_seconds, waiting, shares)
    queue_positions.write_positions(session, positions)


def append_step_event(session: Session, job: Job, step: int, total_steps: int, loss: float = 1.0) -> None:
    """Append a metrics event to a running job, and update its progress."""
    data = {"step": step, "total_steps": total_steps, "train_loss": loss, "train_mean_token_accuracy": 0.5}
    progress = {
        "step": step,
        "total_steps": total_steps,
        "epoch": step / total_steps,
        "tokens_per_second": 100.0,
        "eta_seconds": float(total_steps - step),
    }
    message = f"Step {step}/{total_steps}: training loss={loss:.2f}"
    claims.append_event(session, lease_of(job), message, type="metrics", data=data, progress=progress, phase="training")


def make_checkpoint(
    session: Session, storage: Storage, project: Project, job: Job, step: int, name: str | None = None
) -> Checkpoint:
    """Create a checkpoint at `step`, with the files of its adapter, the archive and the manifest."""
    name = name or f"ft:{job.base_model}:tunery:{job.suffix or ''}:{next(NUMBERS):08d}:ckpt-step-{step}"
    contents = {
        artifact_directory.ADAPTER_CONFIG: json.dumps({"r": 16, "step": step}).encode(),
        artifact_directory.ADAPTER_WEIGHTS: f"weights of step {step}".encode() * 100,
    }
    contents["adapter.tar"] = b"".join(contents.values())
    *parts, archive = (
        _stored(storage, project, content, "fine-tune-results", filename, job, line_count=None)
        for filename, content in contents.items()
    )
    session.add_all((*parts, archive))
    session.flush()
    manifest = {"files": {part.filename: {"bytes": part.bytes, "sha256": part.sha256} for part in parts}}
    metrics = {"step": step, "train_loss": 1.0 / step}
    checkpoint = Checkpoint(
        project_id=job.project_id,
        job_id=job.id,
        attempt=job.attempt,
        step_number=step,
        name=name,
        metrics=metrics,
        manifest=manifest,
        file_ids=[part.id for part in parts],
        archive_file_id=archive.id,
    )
    session.add(checkpoint)
    session.flush()
    return checkpoint


def finish_job(session: Session, storage: Storage, project: Project, job: Job, steps: int = 3) -> Job:
    """Finish a running job with one checkpoint per step, a results file and an adapter; return it, now `succeeded`."""
    name = f"ft:{job.base_model}:tunery:{job.suffix or ''}:{next(NUMBERS):08d}"
    last: Checkpoint | None = None
    for step in range(1, steps + 1):
        append_step_event(session, job, step, steps, loss=1.0 / step)
        last = make_checkpoint(session, storage, project, job, step, name if step == steps else None)
        models.add_tuned(session, job, last)
    assert last is not None, "a job has at least one step"
    archive = files.get(session, project.id, last.archive_file_id)
    assert archive is not None
    results = make_file(
        session, storage, project, results_csv(steps), "fine-tune-results", "step_metrics.csv", job, line_count=None
    )
    return claims.finish_held_attempt(
        session,
        lease_of(job),
        Reason.DONE,
        "The job has successfully completed",
        trained_tokens=1234,
        fine_tuned_model=name,
        result_file_ids=[results.id],
        adapter_sha256=archive.sha256,
        adapter_bytes=archive.bytes,
        adapter_archive_file_id=archive.id,
    )


def results_csv(steps: int) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"])
    writer.writerows([step, 1.0 / step, 0.5, "", ""] for step in range(1, steps + 1))
    return text.getvalue().encode()


def make_succeeded_job(session: Session, storage: Storage, project: Project, **job_arguments: Any) -> Job:
    """Create a `succeeded` job with all its files. Its base model must be registered; no other job may be waiting."""
    job = make_job(session, project, make_file(session, storage, project), **job_arguments)
    validate_job(session)
    running = start_job(session)
    assert running.id == job.id, "another job was waiting"
    return finish_job(session, storage, project, running)


def make_target(
    session: Session,
    project_id: str,
    name: str = "production",
    destination: Mapping[str, Any] = BUCKET,
    credentials: str | None = None,
    **columns: Any,
) -> DeliveryTarget:
    """Register a target of deliveries, by default a bucket; `credentials` are encrypted already."""
    columns |= {"name": name, "kind": destination["kind"], "destination": dict(destination), "credentials": credentials}
    target = DeliveryTarget(id=new_id("target", "_"), project_id=project_id, **columns)
    session.add(target)
    session.flush()
    session.refresh(target)
    return target


def make_webhook_endpoint(
    session: Session,
    project_id: str,
    url: str = "https://example.com",
    event_types: Sequence[str] = EVENT_TYPES,
    secret: str | None = None,
    encryption_keys: Sequence[str] = (),
    **columns: Any,
) -> WebhookEndpoint:
    """An enabled endpoint for every event; `secret` is stored encrypted if there are keys."""
    secret = secret or new_secret()
    endpoint = WebhookEndpoint(
        id=new_id("wh", "_"),
        project_id=project_id,
        url=url,
        event_types=list(event_types),
        secret=encryption.protect(encryption_keys, secret),
        secret_hint=secret_hint(secret),
        **{"name": "ci"} | columns,
    )
    session.add(endpoint)
    session.flush()
    session.refresh(endpoint)
    return endpoint


def make_delivery(session: Session, job: Job) -> Delivery:
    """Create a delivery of the first kept checkpoint of a job to a new target."""
    return deliveries.create(session, job, checkpoints.kept(session, job.id)[0], make_target(session, job.project_id))


def make_failed_job(session: Session, storage: Storage, project: Project, **job_arguments: Any) -> Job:
    """Create a job that failed because of its training file."""
    make_job(session, project, make_file(session, storage, project), **job_arguments)
    job = claims.claim(session, "validate", WORKER, TTL_SECONDS)
    assert job is not None
    message = "The job failed due to an invalid training file. Line 3: message 2 has no role"
    return claims.finish_held_attempt(
        session, lease_of(job), Reason.INVALID_TRAINING_FILE, message, param="training_file"
    )
