"""Examples of the queue and its workers in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from app.api.openapi.examples.all_operations import JOB_ID, MODEL, page_of

WORKER = {
    "id": "worker_3f9a1c07d2b845e6",
    "object": "worker",
    "queue": "gpu",
    "status": "busy",
    "device": {
        "kind": "cuda",
        "name": "NVIDIA L4",
        "memory_bytes": 24_152_899_584,
        "count": 1,
        "slots_per_gpu": 1,
        "slot_bytes": None,
    },
    "models": [MODEL],
    "labels": ["site=berlin"],
    "job_id": JOB_ID,
    "evaluation_id": None,
    "started_at": 1794990000,
    "seen_at": 1795000300,
    "name": None,
    "hostname": None,
    "pid": None,
    "versions": None,
}
QUEUE = {
    "object": "queue",
    "workers": {"alive": 2, "busy": 2},
    "own": {"validating": 0, "waiting": 1, "running": 1},
    "others": {"validating": 0, "waiting": 3, "running": 1},
    "running": [
        {
            "id": JOB_ID,
            "project_id": "proj_1a2b3c4d5e6f",
            "model": MODEL,
            "worker_id": WORKER["id"],
            "priority": 0,
            "urgent": False,
            "phase": "training",
            "started_at": 1795000110,
            "expected_finish": 1795000460,
            "gives_way": False,
        }
    ],
    "waiting": [
        {
            "id": "ftjob-7c8d9e0f1a2b3c4d5e6f7a8b",
            "project_id": "proj_1a2b3c4d5e6f",
            "model": MODEL,
            "position": 2,
            "expected_start": 1795000460,
            "waiting_for": None,
            "phase": None,
            "priority": 10,
            "urgent": False,
            "worker_labels": [],
            "planned_seconds": 41.0,
            "created_at": 1795000200,
        }
    ],
    "has_more": False,
    "evaluations": [
        {
            "id": "fteval-5d6e7f8a9b0c1d2e3f4a5b6c",
            "fine_tuning_job_id": JOB_ID,
            "project_id": "proj_1a2b3c4d5e6f",
            "model": MODEL,
            "status": "running",
            "worker_id": "worker_91c0aa54e7d3f2b8",
            "created_at": 1795000120,
            "started_at": 1795000130,
            "answers": 180,
            "total_answers": 400,
            "estimated_seconds": 95.0,
        }
    ],
    "projects": [
        {
            "project_id": "proj_1a2b3c4d5e6f",
            "gpu_seconds": 5400.0,
            "held_gpu_seconds": 160.0,
            "share_weight": 1.0,
            "share": 5560.0,
            "running_jobs": 1,
            "max_running_jobs": 4,
        }
    ],
}
RESPONSE_EXAMPLES: dict[str, Any] = {"GET /v1/workers": page_of(WORKER), "GET /v1/queue": QUEUE}
