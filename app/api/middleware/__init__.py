"""ASGI middleware: framing, request ids and timing, limits of bodies, the request log, Azure's paths."""
