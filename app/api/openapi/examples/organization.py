"""Examples of the operations on projects, keys and the audit log, and the schemas of their bodies."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from app.api.openapi.examples import all_operations
from app.api.schemas.organization.base_models import RegisterBaseModel, SetModelAlias
from app.api.schemas.organization.project_keys import CreateKey, RotateKey, UpdateKey
from app.api.schemas.organization.projects import ArchiveProject, CreateProject, UpdateProject
from app.api.schemas.organization.retention import ChangeRetention

OpenApi = dict[str, Any]
PROJECT_ID = "proj_7a1b2c3d4e5f60718293a4b5"
KEY_ID = "key_0123456789ab"
PROJECTS = "/v1/organization/projects"
KEYS = f"{PROJECTS}/{{project_id}}/api_keys"
ALIASES = "/v1/organization/model_aliases"
ALIAS_NAME = "gpt-4o-mini-2024-07-18"
BODIES: tuple[type[BaseModel], ...] = (
    ArchiveProject,
    ChangeRetention,
    CreateKey,
    CreateProject,
    RegisterBaseModel,
    RotateKey,
    SetModelAlias,
    UpdateKey,
    UpdateProject,
)

LIMITS = {
    "max_stored_bytes": 100_000_000_000,
    "max_queued_jobs": 50,
    "max_running_jobs": 2,
    "max_gpu_seconds_per_month": 360_000,
    "max_requests_per_second": 50,
}
PROJECT = {
    "id": PROJECT_ID,
    "object": "organization.project",
    "name": "research",
    "created_at": 1795000000,
    "archived_at": None,
    "status": "active",
    "limits": LIMITS,
    "share_weight": 1.0,
    "may_be_urgent": False,
}
USAGE = {
    "stored_bytes": 51_240_000,
    "queued_jobs": 3,
    "running_jobs": 1,
    "gpu_seconds_this_month": 8712.4,
    "held_gpu_seconds": 610.0,
}
KEY = {
    "id": KEY_ID,
    "object": "organization.project.api_key",
    "project_id": PROJECT_ID,
    "name": "nightly",
    "redacted_value": "tnry_0123…9xQk",
    "scopes": ["files:write", "jobs:write", "models:read"],
    "status": "active",
    "created_at": 1795000000,
    "last_used_at": 1795000300,
    "expires_at": 1802776000,
    "revoked_at": None,
    "rotated_at": None,
    "previous_value_expires_at": None,
    "owner": {"type": None},
    "owner_project_access": "active",
}
REGISTERED = "Qwen3-0.6B"
REGISTER = {
    "name": REGISTERED,
    "directory": "/srv/models/Qwen3-0.6B",
    "license": "apache-2.0",
    "source": "Qwen/Qwen3-0.6B",
    "revision": "c1899de289a04d12100db370d81485cdf75e47ca",
}
REGISTRATION_ID = "basereg_7a1b2c3d4e5f60718293a4b5"
REGISTRATION: dict[str, Any] = REGISTER | {
    "id": REGISTRATION_ID,
    "object": "organization.base_model_registration",
    "learning_rate": None,
    "pull": False,
    "status": "queued",
    "created_at": 1795000000,
    "started_at": None,
    "finished_at": None,
    "notes": [],
    "error": None,
}
ORGANIZATION_BASE_MODEL = {
    "id": REGISTERED,
    "object": "organization.base_model",
    "project_id": None,
    "directory": REGISTER["directory"],
    "architecture": "Qwen3ForCausalLM",
    "parameters": 596_049_920,
    "size_bytes": 1_503_300_328,
    "max_context_length": 40_960,
    "learning_rate": 0.0009,
    "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "license": "apache-2.0",
    "source": REGISTER["source"],
    "revision": REGISTER["revision"],
    "manifest_sha256": all_operations.SHA256,
    "created_at": 1795000060,
}
SECRETS = {
    "object": "list",
    "data": [
        {
            "object": "organization.secret",
            "kind": "webhook_endpoint",
            "id": "wh_7a1b2c3d4e5f60718293a4b5",
            "name": "results",
            "project_id": PROJECT_ID,
            "protection": "old_key",
            "key": "5d41402a",
        }
    ],
    "keys": [
        {"fingerprint": "9f86d081", "encrypts": True, "protects": 0},
        {"fingerprint": "5d41402a", "encrypts": False, "protects": 1},
    ],
}
RETENTION_RULE = {
    "object": "organization.retention_rule",
    "project_id": PROJECT_ID,
    "project": "research",
    "kind": "logs",
    "days": 90,
    "due": {"count": 12, "size_bytes": 3_400_000},
}
NEW_KEY = KEY | {"last_used_at": None, "value": "tnry_0123456789ab_Vq3fJmY7c0uHn2ZtXwRk5sLbDpEa8gTi1oGyBjM9xQk"}
ENTRY = {
    "id": "audit_log-8a1b2c3d4e5f60718293a4b5",
    "object": "organization.audit_log",
    "type": "fine_tuning.jobs.create",
    "effective_at": 1795000100,
    "actor": {"type": "api_key", "id": KEY_ID, "api_key": {"id": KEY_ID}},
    "project": {"id": PROJECT_ID},
    "object_ids": ["ftjob-4f6e1c0b9d2a7e8c3b5a6d1f"],
    "ip_address": "192.0.2.7",
    "request_id": "req_5d41402abc4b2a76b9719d911017c592",
}
MODEL_ALIAS = {
    "id": ALIAS_NAME,
    "object": "organization.model_alias",
    "model": all_operations.MODEL,
    "registered": True,
    "created_at": 1795000000,
}

STATUS = {
    "object": "organization.status",
    "created_at": 1795000300,
    "healthy": False,
    "problems": [
        {
            "code": "no_gpu_worker",
            "level": "problem",
            "message": "2 jobs wait to train, and no GPU worker is alive.",
            "remedy": "Start a worker and read its log.",
        }
    ],
    "checks": [{"name": "database", "ok": True, "required": True, "observed": "reachable"}],
    "workers": [],
    "queue": {
        "validating_files": 0,
        "queued": 2,
        "running": 0,
        "paused": 1,
        "oldest": [
            {
                "id": all_operations.JOB_ID,
                "project_id": PROJECT_ID,
                "status": "queued",
                "due_at": 1794999000,
                "waiting_seconds": 1300.0,
            }
        ],
    },
    "failed_jobs": {
        "total": 1,
        "by_code": {"model_unavailable": 1},
        "data": [
            {
                "id": "ftjob-0123456789abcdef01234567",
                "project_id": PROJECT_ID,
                "project": "research",
                "model": all_operations.MODEL,
                "finished_at": 1794980000,
                "code": "model_unavailable",
                "message": "The base model cannot be used: config.json is missing.",
                "remedy": "Ask the operator to register the base model again, or choose another one.",
            }
        ],
    },
    "deliveries": {
        "pending": 1,
        "withdrawing": 0,
        "due": 0,
        "oldest_due_seconds": 0.0,
        "failed": [
            {
                "id": "delivery_0123456789abcdef01234567",
                "project_id": PROJECT_ID,
                "project": "research",
                "target": "production",
                "job_id": all_operations.JOB_ID,
                "model": f"ft:{all_operations.MODEL}:tunery:demo:1f8a20c4",
                "failed_at": 1794990000,
                "next_attempt_at": None,
                "error": "http://10.0.0.5:8000 is not reachable: Connection refused",
            }
        ],
        "retried": [],
    },
    "webhooks": {
        "failing": [
            {
                "id": "wh_0123456789abcdef01234567",
                "project_id": PROJECT_ID,
                "project": "research",
                "name": "ci",
                "failing_since": 1794990000,
                "disabled_reason": None,
            }
        ]
    },
    "storage": {
        "disk_free_bytes": 412_000_000_000,
        "disk_bytes": 1_000_000_000_000,
        "projects": [{"project_id": PROJECT_ID, "project": "research", "stored_bytes": 51_240_000}],
    },
    "last_backup": {"finished_at": 1794960000, "details": {"name": "2026-11-26T02-00-00.000000Z"}},
}


def _page(item: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [item], "has_more": False, "first_id": item["id"], "last_id": item["id"]}


RESPONSE_EXAMPLES: dict[str, Any] = {
    "GET /v1/project": PROJECT | {"usage": USAGE, "api_key": {"id": KEY_ID, "scopes": KEY["scopes"]}},
    f"POST {PROJECTS}": PROJECT,
    f"GET {PROJECTS}": _page(PROJECT),
    f"GET {PROJECTS}/{{project_id}}": PROJECT | {"usage": USAGE},
    f"POST {PROJECTS}/{{project_id}}": PROJECT,
    f"POST {PROJECTS}/{{project_id}}/archive": PROJECT | {"status": "archived", "archived_at": 1795100000},
    f"POST {PROJECTS}/{{project_id}}/unarchive": PROJECT,
    f"POST {KEYS}": NEW_KEY,
    f"GET {KEYS}": _page(KEY),
    f"GET {KEYS}/{{key_id}}": KEY,
    f"POST {KEYS}/{{key_id}}": KEY,
    f"POST {KEYS}/{{key_id}}/rotate": NEW_KEY
    | {"rotated_at": 1795000400, "previous_value_expires_at": 1795086800, "last_used_at": 1795000300},
    f"DELETE {KEYS}/{{key_id}}": {"id": KEY_ID, "object": "organization.project.api_key.deleted", "deleted": True},
    f"POST {ALIASES}": MODEL_ALIAS,
    f"GET {ALIASES}": {"object": "list", "data": [MODEL_ALIAS]},
    f"DELETE {ALIASES}/{{name}}": {"id": ALIAS_NAME, "object": "organization.model_alias", "deleted": True},
    "GET /v1/organization/api_keys": _page(KEY),
    "GET /v1/organization/retention_rules": {"object": "list", "data": [RETENTION_RULE | {"due": None}]},
    f"POST {PROJECTS}/{{project_id}}/retention_rules": {"object": "list", "data": [RETENTION_RULE]},
    "GET /v1/organization/secrets": SECRETS,
    "POST /v1/organization/secrets/rotate": {
        "object": "organization.secret_rotation",
        "rotated": 2,
        "remaining": 0,
        "lost": 0,
    },
    "GET /v1/organization/base_models": {"object": "list", "data": [ORGANIZATION_BASE_MODEL]},
    "DELETE /v1/organization/base_models/{model}": {
        "id": REGISTERED,
        "object": "organization.base_model.deleted",
        "deleted": True,
    },
    "POST /v1/organization/base_model_registrations": REGISTRATION,
    "GET /v1/organization/base_model_registrations": _page(REGISTRATION),
    "GET /v1/organization/base_model_registrations/{registration_id}": REGISTRATION,
    "GET /v1/organization/jobs": _page(all_operations.FINISHED_JOB | {"project_id": PROJECT_ID}),
    "GET /v1/organization/audit_logs": _page(ENTRY),
    "GET /v1/organization/status": STATUS,
}


def _body(model: type[BaseModel], example: dict[str, Any], required: bool = True) -> OpenApi:
    content = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, "example": example}
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


REGISTER_BASE_MODEL_BODY = _body(RegisterBaseModel, REGISTER)
CREATE_PROJECT_BODY = _body(CreateProject, {"name": "research", "limits": {"max_queued_jobs": 50}})
UPDATE_PROJECT_BODY = _body(UpdateProject, {"limits": {"max_gpu_seconds_per_month": 720_000}})
ARCHIVE_PROJECT_BODY = _body(ArchiveProject, {"cancel_jobs": True}, required=False)
CREATE_KEY_BODY = _body(
    CreateKey,
    {"name": "nightly", "scopes": ["files:write", "jobs:write", "models:read"], "expires_in_seconds": 7_776_000},
)
SET_MODEL_ALIAS_BODY = _body(SetModelAlias, {"name": ALIAS_NAME, "model": all_operations.MODEL})
CHANGE_RETENTION_BODY = _body(ChangeRetention, {"rules": {"logs": 90}, "dry_run": True})
UPDATE_KEY_BODY = _body(UpdateKey, {"scopes": ["all:read"]})
ROTATE_KEY_BODY = _body(RotateKey, {"overlap_seconds": 3600}, required=False)
BODY_SCHEMAS = [model.model_json_schema(ref_template="#/components/schemas/{model}") for model in BODIES]
