"""Start the HTTP service: `python -m app.serve --host 0.0.0.0 --port 8000`.

This is uvicorn's command line with Tunery's application and its limits for slow and idle connections. All other
options and environment variables of uvicorn (UVICORN_HOST, FORWARDED_ALLOW_IPS, ...) work as well.
"""

from __future__ import annotations

import sys

import uvicorn

APPLICATION = "app.main:app_from_environment"
UVICORN_OPTIONS = (
    "--factory",
    APPLICATION,
    "--http=app.api.transport.connection:LimitedConnection",
    "--ws=none",
    "--timeout-graceful-shutdown=5",
)


def main() -> None:
    uvicorn.main([*UVICORN_OPTIONS, *sys.argv[1:]], prog_name="python -m app.serve")


if __name__ == "__main__":
    main()
