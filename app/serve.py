"""Start the HTTP service: `python -m app.serve --host 0.0.0.0 --port 8000`.

This is uvicorn's command line with Tunery's application. All other options and environment variables of uvicorn
(UVICORN_HOST, FORWARDED_ALLOW_IPS, ...) work as well. This process serves the metrics, also those of the processes that
`--workers` starts.
"""

from __future__ import annotations

import math
import os
import sys

import uvicorn

from app.log import configure_logging
from app.settings import load_settings
from app.telemetry.multiprocess import shared_metrics, worker_count

APPLICATION = "app.main:app_from_environment"
UVICORN_OPTIONS = (
    "--factory",
    APPLICATION,
    "--http=httptools",  # h11 executes a request that is smuggled by a Content-Length beside a Transfer-Encoding
    "--ws=none",
    "--timeout-graceful-shutdown=5",
    # uvicorn kills a process that does not answer in this time, also one that still starts. Its default of 5 seconds is
    # less than a start takes on a busy machine, so that with --workers no process ever served.
    "--timeout-worker-healthcheck=60",
)


def main() -> None:
    processes = worker_count(sys.argv[1:], os.environ)
    with shared_metrics(processes):
        # within the block: they create the metrics
        from app.api.bootstrap_guard import bind_host, require_proxy
        from app.telemetry.exposition import start_metrics_server

        options = list(UVICORN_OPTIONS)
        if "--help" not in sys.argv:
            settings = load_settings()
            require_proxy(settings, bind_host(sys.argv, os.environ))
            options.append(f"--timeout-keep-alive={math.ceil(settings.keep_alive_seconds)}")
            configure_logging(settings.log_json, settings.log_file if processes == 1 else None)
            start_metrics_server(settings, "api")
        uvicorn.main([*options, *sys.argv[1:]], prog_name="python -m app.serve")


if __name__ == "__main__":
    main()
