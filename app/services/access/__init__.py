"""Use cases of access: projects, API keys, permissions, quotas, rate limits, idempotency, audit."""
