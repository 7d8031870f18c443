"""ASGI middleware: request ids and timing, the request log, Azure's paths, absolute-form targets."""
