"""Descriptions of errors, readiness, models and permissions."""

from __future__ import annotations

BY_SCHEMA = {
    "ErrorBody.error": "The error.",
    "ErrorDetail.code": "The error code for programs: see the page of errors.",
    "ErrorDetail.param": "The part of the request, as a dotted path; with several problems that of the first.",
    "ErrorDetail.type": "`invalid_request_error`, or `server_error` if the request was valid.",
    "LoraLimits.max_r": "The largest rank.",
    "LoraLimits.target_modules": "The layers that an adapter can have.",
    "LoraLimits.target_parameters": "The stacked weights of experts that an adapter can have; absent without experts.",
    "ModelBody.alias_of": "The base model, if this name is an alias of it.",
    "ModelBody.created": "Seconds since 1970.",
    "ModelBody.fine_tunable": "Whether a job can use it as its `model`.",
    "ModelBody.id": "The name to send as `model` of a job.",
    "ModelBody.lora_limits": "The limits for an adapter on this base model.",
    "ModelBody.max_context_length": "The context length of a base model, in tokens.",
    "ModelBody.owned_by": "`tunery`, or the server's organization for a model that was trained here.",
    "ModelBody.revision": "The commit or tag of `source`, if the operator gave one.",
    "ModelBody.source": "The id of a base model on its hub, if the operator gave it.",
    "Readiness.checks": "One check for each dependency of the service.",
    "ReadinessCheck.detail": "The result in words.",
    "ReadinessCheck.ok": "Whether the check passed.",
    "ReadinessCheck.required": "Whether the service is not ready if this check fails.",
}
