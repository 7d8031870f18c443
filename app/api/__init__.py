"""The HTTP API in OpenAI's contract: authentication, idempotency, fair limits, errors in OpenAI's shape."""
