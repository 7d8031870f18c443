"""The story whose requests and responses are the examples of the OpenAPI document, told to a whole service.

`record` starts `tunery up`, sends every operation at least once, and returns what was sent and received by operation:
`parameters` of path and query, the `request` and the `responses` by status and media type. Ids, times, digests, secrets
and addresses are replaced by ones that each recording has; measurements stay as they were.
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import httpx2
from cryptography.fernet import Fernet

from tests.receiver import receiving
from tests.stack import open_directory
from tests.tiny import make_tiny_base
from tests.tools.api_reference.recorder import ANY_TYPE, Recorder, stable
from tests.up import ROOT, Service

MODEL = "SmolLM2-135M-Instruct"
ALIAS = "gpt-4o-mini-2024-07-18"
JOBS, ONE_JOB = "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/{job_id}"
HOOKS, PROJECTS = "/v1/webhook_endpoints", "/v1/organization/projects"
KEYS, ALIASES = f"{PROJECTS}/{{project_id}}/api_keys", "/v1/organization/model_aliases"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{model}/permissions"
REGISTRATIONS = "/v1/organization/base_model_registrations"
HYPERPARAMETERS = {"n_epochs": 1, "batch_size": 4}
CREATE_JOB = {
    "model": MODEL,
    "suffix": "demo",
    "seed": 7,
    "metadata": {"team": "search"},
    "method": {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},
    "lora": {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
    "quantization": {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"},
}
GRADERS = [
    {"type": "string_check", "name": "exact", "input": "{{ sample.output_text }}",
     "reference": "{{ item.reference_answer }}", "operation": "eq"},
    {"type": "text_similarity", "name": "similarity", "input": "{{ sample.output_text }}",
     "reference": "{{ item.reference_answer }}", "evaluation_metric": "fuzzy_match"},
]  # fmt: skip
EVENTS = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


def record() -> dict[str, Any]:
    """{operation: parameters, request, responses}, with stable ids."""
    with open_directory() as directory, receiving() as receiver:
        for name in ("models", "adapters"):
            (directory / name).mkdir(mode=0o777)
        make_tiny_base(directory / "models" / "tiny-chat")
        environment = {
            "TUNERY_THREADS": "2",
            "TUNERY_WEBHOOK_ALLOW_HTTP": "true",
            "TUNERY_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
            "TUNERY_DELIVERY_DIRECTORIES": str(directory / "adapters"),
            "TUNERY_BASE_MODEL_DIRECTORIES": str(directory / "models"),
            "TUNERY_SECRET_KEYS": Fernet.generate_key().decode(),
        }
        service = Service(directory, environment)
        try:
            service.start()
            headers = {"Authorization": f"Bearer {service.key}"}
            with httpx2.Client(base_url=service.url, headers=headers, timeout=120) as http:
                recorder = Recorder(http)
                tell(recorder, directory, receiver.url)
            address = service.url
        finally:
            service.stop()
        replaced = {receiver.url: "https://hooks.example.com/tunery", address: "http://127.0.0.1:8000"}
    return stable(recorder.recorded, replaced | {str(directory): "/srv/tunery", socket.gethostname(): "gpu-host-1"})


def tell(send: Recorder, directory: Path, receiver_url: str) -> None:
    _administrate(send, directory)
    endpoint = send(f"POST {HOOKS}", {"name": "pipeline", "url": receiver_url, "event_types": EVENTS})["id"]
    training_file, heldout = _upload_files(send)
    target = {"kind": "directory", "path": str(directory / "adapters")}
    send("POST /v1/delivery_targets", {"name": "production", "destination": target})
    job = _train(send, training_file)
    _read_job(send, job)
    _evaluate(send, job["id"], heldout)
    _export(send, job["id"])
    _deliver(send, job["id"])
    _answer(send, job["fine_tuned_model"])
    _share(send, job["fine_tuned_model"])
    _webhooks(send, endpoint)
    _look_at_the_service(send)
    _delete(send, job["fine_tuned_model"], training_file)


def _upload_files(send: Recorder) -> tuple[str, str]:
    train, heldout = (
        b"".join((ROOT / "examples" / "support-tickets" / name).read_bytes().splitlines(keepends=True)[:lines])
        for name, lines in (("train.jsonl", 12), ("heldout.jsonl", 2))
    )
    file_id = send.upload("POST /v1/files", "file", train, purpose="fine-tune")["id"]
    form = {"data": {"purpose": "evals"}, "files": {"file": ("heldout.jsonl", heldout)}}
    held_out_id = send.http.post("/v1/files", **form).json()["id"]
    send("GET /v1/files", query={"limit": 1})
    send("GET /v1/files/{file_id}", file_id=file_id)
    send(ANY_TYPE, file_id=file_id)
    send(ANY_TYPE, file_id=file_id, headers={"Range": "bytes=0-99"})
    send("POST /v1/files/{file_id}/validate", file_id=file_id, query={"model": MODEL, "rows": 1})
    origin = {"service": "openai", "id": "file-XjGxS3KTG0uNmNOK362iJua3", "filename": "train.jsonl",
              "created_at": 1740000000, "imported_at": 1795000000}  # fmt: skip
    send("POST /v1/files/{file_id}", {"origin": origin}, file_id=file_id)
    new = {"filename": "train.jsonl", "purpose": "fine-tune", "bytes": len(train), "mime_type": "application/jsonl"}
    uploads = [send("POST /v1/uploads", new)["id"] for _ in range(3)]
    parts = [send.upload("POST /v1/uploads/{upload_id}/parts", "data", part, upload_id=uploads[0])["id"]
             for part in (train[:2000], train[2000:])]  # fmt: skip
    send("GET /v1/uploads/{upload_id}", upload_id=uploads[0])
    send("GET /v1/uploads/{upload_id}/parts", upload_id=uploads[0])
    md5 = hashlib.md5(train, usedforsecurity=False).hexdigest()
    send("POST /v1/uploads/{upload_id}/complete", {"part_ids": parts, "md5": md5}, upload_id=uploads[0])
    send.put("PUT /v1/uploads/{upload_id}/content", train, upload_id=uploads[1])
    send("POST /v1/uploads/{upload_id}/cancel", upload_id=uploads[2])
    return file_id, held_out_id


def _train(send: Recorder, training_file: str) -> Any:
    """The finished job. A second job waits meanwhile: it is paused, resumed, changed and cancelled."""
    request = CREATE_JOB | {"training_file": training_file}
    send(f"POST {JOBS}/plan", request)
    job_id = send(f"POST {JOBS}", request)["id"]
    send.wait(f"{JOBS}/{job_id}", lambda job: job["status"] == "running")
    variants = [{"lora": {"r": 8}}, {"hyperparameters": {"n_epochs": 2}}]
    for job in send(f"POST {JOBS}/groups", {"job": request, "variants": variants})["jobs"]:
        send.http.post(f"{JOBS}/{job['id']}/cancel").raise_for_status()
    clone_id = send(f"POST {ONE_JOB}/clone", {"lora": {"r": 32}}, job_id=job_id)["id"]
    send.wait(f"{JOBS}/{clone_id}", lambda job: job["status"] == "queued")
    send(f"POST {ONE_JOB}/pause", job_id=clone_id)
    send(f"POST {ONE_JOB}/resume", job_id=clone_id)
    changes = {"priority": 10, "metadata": {"team": "search", "for": "release 3"}}
    send(f"POST {ONE_JOB}", changes, job_id=clone_id)
    send.wait(f"{JOBS}/{clone_id}", lambda job: job["queue_position"] is not None)
    send("GET /v1/queue")
    send("GET /v1/workers")
    send("GET /v1/events/stream")
    send(f"POST {ONE_JOB}/cancel", job_id=clone_id)
    done = send.wait(f"{JOBS}/{job_id}")
    assert done["status"] == "succeeded", done["error"]
    send(f"GET {ONE_JOB}/diff", job_id=job_id, query={"with": clone_id})
    return done


def _read_job(send: Recorder, job: Any) -> None:
    job_id = job["id"]
    send(f"GET {ONE_JOB}", job_id=job_id)
    filters = {"metadata": {"team": "search"}, "limit": 1}
    send(f"GET {JOBS}", query=filters)
    send("GET /v1/organization/jobs", query=filters)
    send(f"GET {ONE_JOB}/events", job_id=job_id, query={"limit": 2})
    send(f"GET {ONE_JOB}/checkpoints", job_id=job_id)
    send(f"GET {ONE_JOB}/metrics", job_id=job_id, query={"max_points": 2})
    csv = send.http.get(f"{JOBS}/{job_id}/metrics", params={"max_points": 2, "format": "csv"})
    send.recorded[f"GET {ONE_JOB}/metrics"]["responses"]["200 text/csv"] = csv.text
    send(f"GET {ONE_JOB}/attempts", job_id=job_id)
    send(f"GET {ONE_JOB}/logs", job_id=job_id)
    send("GET /v1/fine_tuning/loss_curves", query={"jobs": job_id, "max_points": 3})
    stream = f"GET {ONE_JOB}/events/stream"
    send(stream, job_id=job_id)
    send(f"GET {ONE_JOB}/adapter", job_id=job_id)
    send(f"GET {ONE_JOB}/adapter/archive", job_id=job_id)
    send(f"GET {ONE_JOB}/adapter/archive", job_id=job_id, headers={"Range": "bytes=0-99"})


def _evaluate(send: Recorder, job_id: str, heldout: str) -> None:
    path = f"{ONE_JOB}/evaluations"
    request = {"file": heldout, "graders": GRADERS, "max_new_tokens": 32}
    evaluation = send(f"POST {path}", request, job_id=job_id)["id"]
    cancelled = send.http.post(f"{JOBS}/{job_id}/evaluations", json=request).json()["id"]
    send(f"POST {path}/{{evaluation_id}}/cancel", job_id=job_id, evaluation_id=cancelled)
    assert send.wait(f"{JOBS}/{job_id}/evaluations/{evaluation}")["status"] == "succeeded"
    send(f"GET {path}/{{evaluation_id}}", job_id=job_id, evaluation_id=evaluation)
    send(f"GET {path}/{{evaluation_id}}/rows", job_id=job_id, evaluation_id=evaluation, query={"limit": 2})
    send(f"GET {path}", job_id=job_id, query={"limit": 2})


def _export(send: Recorder, job_id: str) -> None:
    path = f"{ONE_JOB}/exports"
    export = send(f"POST {path}", {"type": "merged"}, job_id=job_id)["id"]
    assert send.wait(f"{JOBS}/{job_id}/exports/{export}")["status"] == "succeeded"
    send(f"GET {path}", job_id=job_id)
    send(f"GET {path}/{{export_id}}", job_id=job_id, export_id=export)
    send(f"DELETE {path}/{{export_id}}", job_id=job_id, export_id=export)


def _deliver(send: Recorder, job_id: str) -> None:
    target = send("GET /v1/delivery_targets")["data"][0]["id"]
    send("GET /v1/delivery_targets/{target_id}", target_id=target)
    send("POST /v1/delivery_targets/{target_id}", {"default": True}, target_id=target)
    path = f"{ONE_JOB}/deliveries"
    delivery = send(f"POST {path}", {"target": "production"}, job_id=job_id)["id"]
    assert send.wait(f"{JOBS}/{job_id}/deliveries/{delivery}")["status"] == "delivered"
    send(f"GET {path}", job_id=job_id)
    send(f"GET {path}/{{delivery_id}}", job_id=job_id, delivery_id=delivery)
    send(f"DELETE {path}/{{delivery_id}}", job_id=job_id, delivery_id=delivery)
    send.wait(f"{JOBS}/{job_id}/deliveries/{delivery}", lambda row: row["status"] == "withdrawn")
    send("DELETE /v1/delivery_targets/{target_id}", target_id=target)


def _answer(send: Recorder, model: str) -> None:
    chat = {"model": model, "messages": [{"role": "user", "content": "My parcel has not arrived."}]}
    for operation, question in (("chat/completions", chat), ("completions", {"model": model, "prompt": "My parcel"})):
        request = question | {"max_tokens": 16, "temperature": 0}
        send(f"POST /v1/{operation}", request)
        send(f"POST /v1/{operation}", request | {"stream": True})


def _share(send: Recorder, model: str) -> None:
    other = send.http.get(PROJECTS).json()["data"][0]["id"]
    permission = send(f"POST {PERMISSIONS}", {"project_ids": [other]}, model=model)["data"][0]["id"]
    send(f"GET {PERMISSIONS}", model=model)
    send(f"DELETE {PERMISSIONS}/{{permission_id}}", model=model, permission_id=permission)


def _webhooks(send: Recorder, endpoint: str) -> None:
    of_endpoint = {"endpoint_id": endpoint}
    send("GET /v1/webhook_event_types")
    send(f"GET {HOOKS}")
    send(f"GET {HOOKS}/{{endpoint_id}}", **of_endpoint)
    send(f"POST {HOOKS}/{{endpoint_id}}", {"enabled": True}, **of_endpoint)
    rotate = {"keep_old_secret_active_for_24_hours": True}
    send(f"POST {HOOKS}/{{endpoint_id}}/rotate_secret", rotate, **of_endpoint)
    path = f"{HOOKS}/{{endpoint_id}}/deliveries"
    delivered = lambda page: all(each["status"] == "delivered" for each in page["data"])  # noqa: E731
    send.wait(f"{HOOKS}/{endpoint}/deliveries", delivered)
    delivery = send(f"GET {path}", **of_endpoint, query={"limit": 1})["data"][0]["id"]
    send(f"GET {path}/{{delivery_id}}", **of_endpoint, delivery_id=delivery)
    send(f"POST {path}/{{delivery_id}}/redeliver", **of_endpoint, delivery_id=delivery)
    send(f"POST {HOOKS}/{{endpoint_id}}/test", {"event_type": EVENTS[0]}, **of_endpoint)
    send(f"DELETE {HOOKS}/{{endpoint_id}}", **of_endpoint)


def _administrate(send: Recorder, directory: Path) -> None:
    project = send(f"POST {PROJECTS}", {"name": "research", "limits": {"max_queued_jobs": 50}})["id"]
    of_project = {"project_id": project}
    send(f"GET {PROJECTS}/{{project_id}}", **of_project)
    send(f"POST {PROJECTS}/{{project_id}}", {"limits": {"max_gpu_seconds_per_month": 720_000}}, **of_project)
    request = {"name": "nightly", "scopes": ["files:write", "jobs:write", "models:read"],
               "expires_in_seconds": 7_776_000}  # fmt: skip
    of_key = of_project | {"key_id": send(f"POST {KEYS}", request, **of_project)["id"]}
    send(f"GET {KEYS}", **of_project)
    send(f"GET {KEYS}/{{key_id}}", **of_key)
    send(f"POST {KEYS}/{{key_id}}", {"scopes": ["all:read"]}, **of_key)
    send(f"POST {KEYS}/{{key_id}}/rotate", {"overlap_seconds": 3600}, **of_key)
    send("GET /v1/organization/api_keys", query={"limit": 1})
    send(f"DELETE {KEYS}/{{key_id}}", **of_key)
    rules = f"POST {PROJECTS}/{{project_id}}/retention_rules"
    send(rules, {"rules": {"logs": 90}, "dry_run": True}, **of_project)
    send.http.post(f"{PROJECTS}/{project}/retention_rules", json={"rules": {"logs": 90}}).raise_for_status()
    send("GET /v1/organization/retention_rules")
    send(f"POST {PROJECTS}/{{project_id}}/archive", {"cancel_jobs": True}, **of_project)
    send(f"POST {PROJECTS}/{{project_id}}/unarchive", **of_project)
    send(f"GET {PROJECTS}", query={"limit": 1})
    send("GET /v1/project")
    send(f"POST {ALIASES}", {"name": ALIAS, "model": MODEL})
    send(f"GET {ALIASES}")
    send(f"DELETE {ALIASES}/{{name}}", name=ALIAS)
    register = {"name": "tiny-chat", "directory": str(directory / "models" / "tiny-chat"), "license": "apache-2.0"}
    registration = send(f"POST {REGISTRATIONS}", register)["id"]
    assert send.wait(f"{REGISTRATIONS}/{registration}")["status"] == "succeeded"
    send(f"GET {REGISTRATIONS}")
    send(f"GET {REGISTRATIONS}/{{registration_id}}", registration_id=registration)
    send("GET /v1/organization/base_models")
    send("DELETE /v1/organization/base_models/{model}", model="tiny-chat")


def _look_at_the_service(send: Recorder) -> None:
    send("GET /healthz")
    send("GET /readyz")
    send("GET /v1/models")
    send("GET /v1/models/{model}", model=MODEL)
    send("GET /v1/organization/status")
    send(
        "POST /v1/organization/workers/{worker_id}/resume",
        worker_id=send.http.get("/v1/workers").json()["data"][0]["id"],
    )
    send("GET /v1/organization/secrets")
    send("POST /v1/organization/secrets/rotate")
    send("GET /v1/organization/audit_logs", query={"limit": 1})


def _delete(send: Recorder, model: str, file_id: str) -> None:
    send("DELETE /v1/models/{model}", model=model)
    send("DELETE /v1/files/{file_id}", file_id=file_id)
    ended = send.http.get(JOBS, params={"status": "cancelled"}).json()["data"]
    send(f"DELETE {ONE_JOB}", job_id=ended[0]["id"])
