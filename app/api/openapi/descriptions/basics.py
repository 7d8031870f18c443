"""Errors, readiness, models, permissions."""

from __future__ import annotations

BY_SCHEMA = {
    "ErrorBody.error": "What went wrong.",
    "ErrorDetail.code": "One word for programs: see the page of errors.",
    "ErrorDetail.param": "Where in the request, as a dotted path; with several problems the first.",
    "ErrorDetail.type": "`invalid_request_error`, or `server_error` where the request was good.",
    "LoraLimits.max_r": "The largest rank.",
    "LoraLimits.target_modules": "Layers that an adapter may be put on.",
    "ModelBody.created": "Seconds since 1970.",
    "ModelBody.fine_tunable": "Whether a job may name it as its `model`.",
    "ModelBody.id": "The name that a job gives as `model`.",
    "ModelBody.lora_limits": "Of a base model: what an adapter on it may be.",
    "ModelBody.max_context_length": "Of a base model, in tokens.",
    "ModelBody.owned_by": "`tunery`, or the server's organization for what was trained here.",
    "PermissionBody.project_id": "The project that may use the checkpoint.",
    "Readiness.checks": "One for each thing that the service needs.",
    "ReadinessCheck.detail": "What was found.",
    "ReadinessCheck.ok": "Whether it is good.",
    "ReadinessCheck.required": "Whether the service is not ready without it.",
}  # fmt: skip
