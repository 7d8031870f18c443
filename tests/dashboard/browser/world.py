"""A project as its users have it: jobs in every state, with curves, samples, events, warnings and hostile names."""

from __future__ import annotations

import io
import json
import math
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy.orm import Session

from app.db.engine import Sessions, make_engine, make_sessions, transaction
from app.db.ids import new_id
from app.db.jobs import checkpoints, claims, events, exports
from app.db.jobs.leases import Lease
from app.db.operations import status
from app.db.scheduling import workers
from app.db.tables import Evaluation, Export, File, Job, Project, WebhookEndpoint
from app.db.webhooks import deliveries as webhook_deliveries
from app.domain.artifacts.exports import ExportErrorCode, ExportKind, ExportType, Quantization
from app.domain.evaluations.graders import EvaluationSettings
from app.domain.evaluations.results import index_rows
from app.domain.jobs.states import Reason
from app.domain.scheduling.worker_capacity import worker_capacity
from app.main import create_app
from app.services.access import keys
from app.services.jobs import jobs
from app.settings import Settings
from app.storage import LocalStorage
from tests import factories
from tests.answering_engine import BASE, TO_ENGINES, AnsweringEngine, answering, deliver
from tests.api_objects import DELIVERY, EVALUATION
from tests.serving import serve

MODEL = "SmolLM2-135M-Instruct"
HOSTILE = "<img src=x onerror=alert(1)>\u202egnp.exe\x07 {{7*7}} `${1}` " + "very long " * 8
ANSWERS = [
    "Refund within 14 days.",
    "Your card ships in two days.",
    "Please restart the router.",
    "Thanks for writing!",
]
REQUEST = {"model": MODEL, "suffix": "support-bot-v3", "hyperparameters": {"n_epochs": "auto"}, "lora": {"rank": 16}}
LOG = "loading SmolLM2-135M-Instruct: 272 tensors\nattention: flash, packed batches of 4,096 tokens\n" + "".join(
    f"step {step}/300 loss {2.6 * 0.99**step:.3f} grad_norm 0.61 880 tokens/s\n" for step in range(120, 141)
)
GB = 1_000_000_000
LABEL_SETTINGS = {"graders": [{"type": "label_accuracy", "name": "label"}]}
HEARTBEAT_SECONDS = 15.0
ABOUT_WORKER = {
    "kind": "cuda", "device": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * GB, "gpus_per_job": 1,
    "models": [MODEL], "labels": ["h100"], "versions": {"torch": "2.14.0"},
}  # fmt: skip
WEBHOOK: dict[str, Any] = {
    "name": "pipeline",
    "url": "https://hooks.example.com/tunery",
    "event_types": ["fine_tuning.job.succeeded", "fine_tuning.job.failed"],
}


@dataclass(frozen=True)
class World:
    api_url: str
    admin_key: str
    member_key: str
    sessions: Sessions
    storage: LocalStorage
    jobs: Mapping[str, str]  # ids by a short name
    files: Mapping[str, str]
    engine: AnsweringEngine  # which has the adapter of the succeeded job

    def add_key(self, project: str = "default", scopes: Sequence[str] = ("all",)) -> str:
        """The secret of a new key."""
        with transaction(self.sessions) as session:
            return keys.issue(session, factories.make_project(session, project), "browser", scopes).secret or ""

    def add_job(
        self, suffix: str, steps: Sequence[int] = (), body: Mapping[str, Any] | None = None, **columns: Any
    ) -> str:
        """A job with checkpoints of these steps; with them it is cancelled."""
        with transaction(self.sessions) as session:
            project = factories.make_project(session)
            file = factories.make_file(session, self.storage, project)
            job = factories.make_job(session, project, file, MODEL, suffix=suffix, body=body)
            for step in steps:
                factories.make_checkpoint(session, self.storage, project, job, step)
            if steps:
                jobs.cancel(session, job)
            for name, value in columns.items():
                setattr(job, name, value)
            return job.id


@contextmanager
def serving_world(database_url: str, redis_url: str, directory: Path) -> Iterator[World]:
    """The world behind a live API."""
    settings = Settings(
        database_url=database_url,
        redis_url=redis_url,
        data_dir=directory / "data",
        device="cpu",
        threads=1,
        min_training_examples=10,
        **TO_ENGINES,
    )
    storage = LocalStorage(settings.storage_dir)
    engine = make_engine(database_url)
    sessions = make_sessions(engine)
    with transaction(sessions) as session:
        project = factories.make_project(session)
        admin_key = keys.issue(session, project, "browser", keys.ADMIN_SCOPES).secret
        member_key = factories.make_key(session, project, "member")
        factories.make_base_model(session, directory / "models" / MODEL, MODEL)
    with answering() as answerer:
        with transaction(sessions) as session:
            files, jobs = _fill(session, storage, factories.make_project(session), answerer)
        with serve(create_app(settings, storage=storage)) as server, _living_worker(sessions):
            _add_webhook(server.root, admin_key, sessions)
            yield World(server.root, admin_key, member_key, sessions, storage, jobs, files, answerer)
    engine.dispose()


@contextmanager
def _living_worker(sessions: Sessions) -> Iterator[None]:
    """A worker with a GPU and the other processes of a service, whose heartbeats are sent until the block ends."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.is_set():
            with transaction(sessions) as session:
                for service in ("reconciler", "webhooks", "deliveries"):
                    status.report(session, service)
                workers.heartbeat(session, factories.WORKER, "gpu", "gpu-host-1", 4242, ABOUT_WORKER)
            ended.wait(HEARTBEAT_SECONDS)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _add_webhook(api_url: str, key: str, sessions: Sessions) -> None:
    """An endpoint, which the audit log has, with a delivery that is due."""
    headers = {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=f"{api_url}/v1/", headers=headers, trust_env=False) as api:
        endpoint_id = api.post("webhook_endpoints", json=WEBHOOK).raise_for_status().json()["id"]
    with transaction(sessions) as session:
        endpoint = session.get_one(WebhookEndpoint, endpoint_id)
        webhook_deliveries.add_test(session, endpoint, WEBHOOK["event_types"][0], {})


def _fill(
    session: Session, storage: LocalStorage, project: Project, engine: AnsweringEngine
) -> tuple[dict[str, str], dict[str, str]]:
    tickets = factories.make_file(session, storage, project, tickets_jsonl(240), filename="support-tickets.jsonl")
    held_out = factories.make_file(session, storage, project, tickets_jsonl(24, seed=2), filename="held-out.jsonl")
    hostile = factories.make_file(
        session, storage, project, hostile_jsonl(), filename="<script>alert(1)</script>.jsonl"
    )
    broken = factories.make_file(session, storage, project, b'{"messages": []}\n' * 12, filename="broken.jsonl")
    files = {"tickets": tickets, "held_out": held_out, "hostile": hostile, "broken": broken}
    made = {
        "succeeded": _finished(session, storage, project, tickets, held_out, "support-bot-v3", 120, 2.0),
        "earlier": _finished(
            session, storage, project, tickets, held_out, "support-bot-v2", 80, 2.3, {"lora": {"r": 8}}
        ),
        "failed": _failed(session, project, tickets),
        "invalid": _invalid(session, project, broken),
        "paused": _paused(session, project, tickets),
        "hostile": _finished(session, storage, project, hostile, None, HOSTILE[:60], 12, 3.0),
        "running": _running(session, project, tickets, held_out),
        "resumed": _resumed(session, storage),
    }
    for number in range(3):
        queued = factories.make_job(session, project, tickets, MODEL, suffix=f"sweep-lr-{number + 1}")
        factories.validate_job(session)
        made[f"queued-{number}"] = queued
    factories.forecast_queue(session, worker_capacity(ABOUT_WORKER), running_seconds=[3_200.0])
    made["cancelled"] = _cancelled(session, project, tickets)
    _add_results(session, storage, made["succeeded"], held_out, engine)
    _add_exports(session, storage, project, made["succeeded"])
    (grader,) = EVALUATION["summary"]["graders"]
    scores = {"low": 0.0, "high": 1.0, "base": [118, 9] + [0] * 7 + [73], "adapter": [0] * 9 + [200]}
    similar = {"name": "similar", "type": "json_fields", "confusion": None, "distribution": scores}
    similar |= {"fields": [{"field": "item", "rows": 200, "base": 0.41, "adapter": 1.0}]}
    similar |= {"difference": grader["difference"] | {"method": "paired_bootstrap"}}
    summary = EVALUATION["summary"] | {"graders": [grader | similar], "promotion": None}
    _add_evaluation(session, storage, made["hostile"], held_out, summary, b"")
    made["succeeded"].request = REQUEST | {"training_file": tickets.id}
    return {name: file.id for name, file in files.items()}, {name: job.id for name, job in made.items()}


def _add_results(session: Session, storage: LocalStorage, job: Job, file: File, engine: AnsweringEngine) -> None:
    """An evaluation of the adapter, and its deliveries: the engine serves it, and another one the base model."""
    _add_evaluation(session, storage, job, file, EVALUATION["summary"], results_jsonl(EVALUATION["summary"]))
    now = datetime.now(UTC)
    staging = deliver(session, job, engine.url, name="staging", base_model=BASE)
    staging.served_check, staging.delivered_at = DELIVERY["check"], now
    production = deliver(session, job, "http://127.0.0.1:9", name="production", base_model=BASE)
    session.refresh(production)
    base_model_served = {"verdict": "no_effect", "engine_effect": 0.002, "difference": 1.86, "top1_agreement": 0.31}
    production.served_check = DELIVERY["check"] | base_model_served
    production.state, production.next_attempt_at = "failed", None
    production.error = "The engine answers as the base model does."


def _add_evaluation(
    session: Session, storage: LocalStorage, job: Job, file: File, summary: Any, content: bytes
) -> None:
    """An evaluation that has succeeded, which its job shows as well."""
    result = checkpoints.by_names(session, [job.fine_tuned_model or ""])[job.fine_tuned_model or ""]
    now, settings = datetime.now(UTC), EvaluationSettings.model_validate(LABEL_SETTINGS)
    name, purpose = "evaluation_results.jsonl", "fine-tune-results"
    project = session.get_one(Project, job.project_id)
    results = factories.make_file(session, storage, project, content, purpose, name, job, line_count=None)
    evaluation = Evaluation(
        id=new_id("fteval"), project_id=job.project_id, job_id=job.id, checkpoint_id=result.id, file_id=file.id,
        settings=settings.model_dump(mode="json"), model=result.name, base_model=MODEL,
        step_number=result.step_number, adapter_file_ids=result.file_ids, plan=EVALUATION["plan"],
        state="succeeded", started_at=now, finished_at=now, precision="bfloat16", summary=summary,
        results_file_id=results.id, row_index=index_rows(io.BytesIO(content), settings).model_dump(),
    )  # fmt: skip
    session.add(evaluation)
    session.flush()
    job.evaluation = {
        "id": evaluation.id, "seq": evaluation.seq, "status": "succeeded", "file": file.id, "error": None,
        "precision": evaluation.precision, "summary": summary,
    }  # fmt: skip


def _add_exports(session: Session, storage: LocalStorage, project: Project, job: Job) -> None:
    """A GGUF file, and one that its worker could not make."""
    result = checkpoints.by_names(session, [job.fine_tuned_model or ""])[job.fine_tuned_model or ""]
    for quantization in (Quantization.Q8_0, Quantization.Q4_K_M):
        exports.insert(session, job, result, ExportKind(ExportType.GGUF, quantization), 148_000_000)
        export = exports.claim(session, factories.WORKER, factories.TTL_SECONDS)
        assert export is not None
        lease = Lease(export.id, export.attempt, factories.WORKER)
        if quantization == Quantization.Q8_0:
            file = factories.make_file(
                session, storage, project, b"GGUF", "fine-tune-results", "model-Q8_0.gguf", job, line_count=None
            )
            file.bytes = 144_811_008
            exports.succeed(session, lease, {"files": {}}, [file.id], file.bytes)
        else:
            text = "llama.cpp computes other answers from the file than the merged model. Export Q8_0."
            factories.fail_attempt(session, Export, lease, ExportErrorCode.DIFFERENT_ANSWERS, text)


def tickets_jsonl(rows: int, seed: int = 1) -> bytes:
    """Chat examples of different lengths."""
    choose = random.Random(seed)
    lines = []
    for number in range(rows):
        question = f"Ticket {seed}-{number}: " + " ".join(
            choose.choices(["card", "order", "late", "refund"], k=choose.randint(4, 40))
        )
        messages = [
            {"role": "system", "content": "You answer support tickets briefly."},
            {"role": "user", "content": question},
            {"role": "assistant", "content": choose.choice(ANSWERS)},
        ]
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines).encode() + b"\n"


def results_jsonl(summary: Mapping[str, Any]) -> bytes:
    """The rows behind the confusion matrices of a summary: the answers of the adapter are in the opposite order."""
    (grader,) = summary["graders"]
    lines: list[bytes] = []
    for number, label in enumerate(labels := grader["confusion"]["base"]["labels"]):
        base, adapter = (
            [one for one, rows in zip([*labels, HOSTILE], grader["confusion"][model]["counts"][number], strict=True)
             for _ in range(rows)]
            for model in ("base", "adapter")
        )  # fmt: skip
        for answers in zip(base, reversed(adapter), strict=True):
            texts = dict(zip(("base", "adapter"), answers, strict=True))
            question = f"Ticket {len(lines) + 1}: where is my order?"
            system = {"role": "system", "content": "Name the topic."}
            row = {
                "line": len(lines) + 1,
                "messages": [system, {"role": "user", "content": question}],
                "question": question,
                "reference_answer": label,
                "answers": {m: {"text": text, "tokens": 2, "cut": False, "error": None} for m, text in texts.items()},
                "scores": {"label": {model: float(text == label) for model, text in texts.items()}},
                "errors": {},
            }
            lines.append(json.dumps(row).encode() + b"\n")
    return b"".join(lines)


def hostile_jsonl() -> bytes:
    """Examples with markup, control characters, changes of direction, and 10,000 characters."""
    texts = [
        HOSTILE,
        "<script>window.pwned = 1</script>",
        "\u202etxet desrever\u202c",
        "x" * 10_000,
        "'\"><svg/onload=window.pwned=1>",
    ]
    texts += [f"row {number} <b>bold</b> &amp; `tick` ${{x}}" for number in range(10)]
    rows = [
        {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": one[:200]}]} for one in texts
    ]
    return "\n".join(json.dumps(row) for row in rows).encode() + b"\n"


def append_steps(
    session: Session,
    job: Job,
    first: int,
    last: int,
    total: int,
    start_loss: float,
    validate_every: int = 0,
    step_seconds: float = 1.2,
) -> None:
    """Metrics of steps as a trainer sends them: a falling, noisy curve."""
    noise = random.Random(total)
    for step in range(first, last + 1):
        loss = 0.4 + start_loss * math.exp(-3 * step / total) + noise.uniform(-0.08, 0.08)
        data: dict[str, Any] = {
            "step": step, "total_steps": total, "train_loss": loss, "train_mean_token_accuracy": 1 - loss / 4,
            "learning_rate": 2e-4 * (1 - step / total), "grad_norm": 0.5 + noise.random(), "epoch": 3 * step / total,
            "labelled_tokens": 300, "num_tokens": 900 * step, "tokens_per_second": 880 + noise.uniform(-60, 60),
            "eta_seconds": (total - step) * step_seconds,
            "estimated_finish": time.time() + (total - step) * step_seconds,
            "peak_memory_bytes": int(1.1 * GB),
        }  # fmt: skip
        if validate_every and step % validate_every == 0:
            data["full_valid_loss"] = data["valid_loss"] = (
                0.55 + start_loss * math.exp(-3.2 * step / total) + 0.3 * (step / total) ** 4
            )
        progress = {
            key: data[key]
            for key in ("step", "total_steps", "epoch", "tokens_per_second", "eta_seconds", "estimated_finish")
        }
        message = f"Step {step}/{total}: training loss={loss:.2f}"
        claims.append_event(
            session, factories.lease_of(job), message, type="metrics", data=data, progress=progress, phase="training"
        )


def _start(session: Session, project: Project, file: File, **arguments: Any) -> Job:
    factories.make_job(session, project, file, MODEL, **arguments)
    factories.validate_job(session)
    return factories.start_job(session)


def _finished(
    session: Session,
    storage: LocalStorage,
    project: Project,
    file: File,
    validation_file: File | None,
    suffix: str,
    steps: int,
    start_loss: float,
    body: dict[str, Any] | None = None,
) -> Job:
    body = {"sample_prompts": ["My card has not arrived"]} | (body or {})
    job = _start(session, project, file, suffix=suffix, validation_file=validation_file, body=body)
    append_steps(session, job, 1, steps - 3, steps, start_loss, validate_every=10 if validation_file else 0)
    for step in (10, steps // 2):
        data = {
            "step": step,
            "prompt": "My card has not arrived",
            "base": "What kind of card is it?",
            "tuned": ANSWERS[1],
        }
        claims.append_event(session, factories.lease_of(job), "Sample answers", data=data)
    name = f"ft:{MODEL}:tunery:{''.join(c for c in suffix if c.isalnum() or c == '-')}:{job.id[-8:]}"
    last = None
    for step in (steps - 2, steps - 1, steps):
        factories.append_step_event(session, job, step, steps, 0.4 + 0.01 * (steps - step))
        last = factories.make_checkpoint(session, storage, project, job, step, name if step == steps else None)
        factories.models.add_tuned(session, job, last)
    assert last is not None
    archive = factories.files.get(session, project.id, last.archive_file_id)
    assert archive is not None
    return claims.finish_held_attempt(
        session, factories.lease_of(job), Reason.DONE, "The job has successfully completed", trained_tokens=107_520,
        fine_tuned_model=name, adapter_sha256=archive.sha256, adapter_bytes=archive.bytes,
        adapter_archive_file_id=archive.id,
    )  # fmt: skip


def _running(session: Session, project: Project, file: File, validation_file: File) -> Job:
    job = _start(session, project, file, suffix="support-bot-v4", validation_file=validation_file)
    append_steps(session, job, 1, 140, 300, 2.2, validate_every=20, step_seconds=20.0)  # longer than all tests
    job.lease_expires_at = datetime.now(UTC) + timedelta(days=1)
    events.put_log(session, job.id, project.id, job.attempt, LOG, 0)
    return job


def _failed(session: Session, project: Project, file: File) -> Job:
    job = _start(session, project, file, suffix="long-context", body={"hyperparameters": {"batch_size": 8}})
    append_steps(session, job, 1, 7, 90, 2.0)
    message = (
        "The base model, the adapter (r 16) and one document of up to 4,096 tokens do not fit into memory. Lower "
        "hyperparameters.context_length first, then lora.r; without quantization, request 4 bits."
    )
    lease = factories.lease_of(job)
    return claims.finish_held_attempt(
        session, lease, Reason.OUT_OF_MEMORY, message, param="hyperparameters.context_length"
    )


def _invalid(session: Session, project: Project, file: File) -> Job:
    factories.make_job(session, project, file, MODEL, suffix="first-try")
    job = claims.claim(session, "validate", factories.WORKER, factories.TTL_SECONDS)
    assert job is not None
    message = "The job failed due to an invalid training file. Line 1: messages is empty, which is no conversation"
    return claims.finish_held_attempt(
        session, factories.lease_of(job), Reason.INVALID_TRAINING_FILE, message, param="training_file"
    )


def _paused(session: Session, project: Project, file: File) -> Job:
    job = _start(session, project, file, suffix="night-run")
    append_steps(session, job, 1, 25, 200, 1.8)
    jobs.pause(session, job)
    return claims.finish_held_attempt(session, factories.lease_of(job), Reason.PAUSED, "The job was paused at step 25")


def _resumed(session: Session, storage: LocalStorage) -> Job:
    """A cancelled job of another project, with the logs of two trainings."""
    project = factories.make_project(session)
    job = _start(session, project, factories.make_file(session, storage, project), suffix="twice")
    events.put_log(session, job.id, project.id, job.attempt, "the first training\n", 0)
    claims.finish_held_attempt(session, factories.lease_of(job), Reason.DRAINED, "The worker was shut down")
    assert factories.start_job(session) is job
    events.put_log(session, job.id, project.id, job.attempt, "the second training\n", 0)
    jobs.cancel(session, job)
    return job


def _cancelled(session: Session, project: Project, file: File) -> Job:
    job = factories.make_job(session, project, file, MODEL, suffix="wrong-file")
    jobs.cancel(session, job)
    return job
