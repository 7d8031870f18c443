"""Queries for projects, API keys, permissions, quotas in use, idempotency keys and the audit log."""
