"""Quotas in use, idempotency keys, and the writing of the audit log."""
