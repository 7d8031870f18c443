"""Start the dashboard: `python -m app.web`. Its settings start with TUNERY_WEB_."""

from __future__ import annotations

import logging

import uvicorn

from app.log import configure_logging
from app.settings import load_web_settings
from app.telemetry.exposition import start_metrics_server
from app.web.server import create_app

STOP_SECONDS = 3  # open web sockets are closed after it


def main() -> None:
    settings = load_web_settings()
    configure_logging(settings.log_json, settings.log_file)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the API logs each request already
    start_metrics_server(settings, "web")
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        ws="wsproto",
        timeout_graceful_shutdown=STOP_SECONDS,
    )


if __name__ == "__main__":
    main()
