"""Start the HTTP service: `python -m app.serve --host 0.0.0.0 --port 8000`.

This is uvicorn's command line with Tunery's application and its limits for slow and idle connections; every other
option of uvicorn's can be given, and so can its environment variables (UVICORN_HOST, FORWARDED_ALLOW_IPS, ...).
"""

from __future__ import annotations

import sys

import uvicorn

APPLICATION = "app.main:app_from_environment"
OURS = (
    "--factory", APPLICATION,
    "--http", "app.api.transport.connection:LimitedConnection",
    "--ws", "none",
    "--timeout-graceful-shutdown", "5",
)  # fmt: skip


def main() -> None:
    uvicorn.main([*OURS, *sys.argv[1:]], prog_name="python -m app.serve")


if __name__ == "__main__":
    main()
