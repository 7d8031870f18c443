"""Descriptions of errors, readiness, models and permissions."""

from __future__ import annotations

BY_SCHEMA = {
    "ErrorBody.error": "The error.",
    "ErrorDetail.code": "The error code for programs: see the page of errors.",
    "ErrorDetail.param": "The part of the request, as a dotted path; with several problems that of the first.",
    "ErrorDetail.type": "`invalid_request_error`, or `server_error` if the request was valid.",
    "PermissionBody.project_id": "The project that may use the checkpoint.",
    "Readiness.checks": "One check for each dependency of the service.",
    "ReadinessCheck.detail": "The result in words.",
    "ReadinessCheck.ok": "Whether the check passed.",
    "ReadinessCheck.required": "Whether the service is not ready if this check fails.",
}
