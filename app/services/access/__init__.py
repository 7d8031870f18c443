"""Access: projects, API keys and permissions with their queries; quotas, rate limits, idempotency, audit."""
