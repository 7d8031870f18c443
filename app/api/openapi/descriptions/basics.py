"""Descriptions of errors, readiness, models and permissions."""

from __future__ import annotations

BY_SCHEMA = {
    "PermissionBody.project_id": "The project that may use the checkpoint.",
}
