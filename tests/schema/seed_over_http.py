"""Creates over HTTP the objects that the generated requests use beside jobs and files.

An id below another one (a delivery of an endpoint) exists only together with it, so all objects of such a kind have one
owner, and the requests for the kind use that owner.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2

from tests.schema.seeded import COPIES, Seeded
from tests.serving import LiveServer

JOBS, ENDPOINTS, PROJECTS = "/v1/fine_tuning/jobs", "/v1/webhook_endpoints", "/v1/organization/projects"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{model}/permissions"
EVENT_TYPE = "fine_tuning.job.succeeded"


def seed_over_http(server: LiveServer, seeded: Seeded, receiver_url: str) -> None:
    headers = {"Authorization": f"Bearer {seeded.key}"}
    with httpx2.Client(base_url=server.root, headers=headers, timeout=60.0) as client:
        _uploads(client, seeded)
        _exports(client, seeded)
        _evaluations(client, seeded)
        _webhooks(client, seeded, receiver_url)
        _projects(client, seeded)


def _uploads(client: httpx2.Client, seeded: Seeded) -> None:
    upload = {"filename": "a.bin", "bytes": 4, "mime_type": "application/octet-stream", "purpose": "user_data"}
    for state in ("pending", "completed", "cancelled"):
        for _ in range(COPIES):
            upload_id = _post(client, "/v1/uploads", upload)["id"]
            part = client.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"data"}).raise_for_status().json()
            if state == "completed":
                _post(client, f"/v1/uploads/{upload_id}/complete", {"part_ids": [part["id"]]})
            if state == "cancelled":
                _post(client, f"/v1/uploads/{upload_id}/cancel", {})
            seeded.add_ids("upload_id", upload_id)


def _exports(client: httpx2.Client, seeded: Seeded) -> None:
    """One export of each checkpoint of one job."""
    (job, *_) = (job for job in _all(client, JOBS) if job["status"] == "succeeded")
    exports = f"{JOBS}/{{job_id}}/exports"
    for checkpoint in _all(client, f"{JOBS}/{job['id']}/checkpoints"):
        body = {"type": "merged", "checkpoint": checkpoint["fine_tuned_model_checkpoint"]}
        seeded.add_ids("export_id", _post(client, f"{JOBS}/{job['id']}/exports", body)["id"])
    for path in (exports, f"{exports}/{{export_id}}"):
        seeded.set_owner(path, "job_id", job["id"])


def _evaluations(client: httpx2.Client, seeded: Seeded) -> None:
    """Evaluations of one job: the workers of the tests leave them queued."""
    (job, *_) = (job for job in _all(client, JOBS) if job["status"] == "succeeded")
    path = f"{JOBS}/{{job_id}}/evaluations"
    for _ in range(2 * COPIES):
        made = _post(client, f"{JOBS}/{job['id']}/evaluations", {"file": job["training_file"], "graders": []})
        seeded.add_ids("evaluation_id", made["id"])
    for operation in (path, f"{path}/{{evaluation_id}}", f"{path}/{{evaluation_id}}/cancel"):
        seeded.set_owner(operation, "job_id", job["id"])


def _webhooks(client: httpx2.Client, seeded: Seeded, receiver_url: str) -> None:
    endpoint = {"name": "seeded", "url": receiver_url, "event_types": [EVENT_TYPE]}
    ids = [_post(client, ENDPOINTS, endpoint)["id"] for _ in range(COPIES)]
    seeded.add_ids("endpoint_id", *ids)
    for _ in range(COPIES):
        tested = _post(client, f"{ENDPOINTS}/{ids[0]}/test", {"event_type": EVENT_TYPE})
        seeded.add_ids("delivery_id", tested["delivery_id"])
    for path in ("", "/redeliver"):
        seeded.set_owner(f"{ENDPOINTS}/{{endpoint_id}}/deliveries/{{delivery_id}}{path}", "endpoint_id", ids[0])


def _projects(client: httpx2.Client, seeded: Seeded) -> None:
    """Projects other than that of the requests, which would archive it and revoke their own key."""
    ids = [_post(client, PROJECTS, {"name": f"seeded-{number}"})["id"] for number in range(2 * COPIES)]
    seeded.add_ids("project_id", *ids)
    keys = f"{PROJECTS}/{{project_id}}/api_keys/{{key_id}}"
    for number in range(2 * COPIES):
        key = _post(client, f"{PROJECTS}/{ids[0]}/api_keys", {"name": f"seeded-{number}", "scopes": ["all:read"]})
        seeded.add_ids("key_id", key["id"])
    for path in (keys, f"{keys}/rotate"):
        seeded.set_owner(path, "project_id", ids[0])
    (model, *_) = (model for model in seeded.ids["model"] if model.startswith("ft:"))
    shared = _post(client, PERMISSIONS.format(model=model), {"project_ids": ids})
    seeded.add_ids("permission_id", *(permission["id"] for permission in shared["data"]))
    seeded.set_owner(f"{PERMISSIONS}/{{permission_id}}", "model", model)


def _post(client: httpx2.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.is_success, f"POST {path}: {response.status_code} {response.text}"
    return dict(response.json())


def _all(client: httpx2.Client, path: str) -> Iterator[dict[str, Any]]:
    yield from client.get(path, params={"limit": 100}).raise_for_status().json()["data"]
