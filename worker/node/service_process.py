"""A process that runs one loop until SIGTERM or SIGINT: the reconciler, the webhook sender."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Protocol

from app.log import configure_logging
from app.settings import load_settings
from app.telemetry.exposition import start_metrics_server
from app.telemetry.tracing import configure_tracing
from worker.node.resources import Resources, open_resources

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}


class Service(Protocol):
    def run(self) -> None:
        """Run until `resources.stop` is set."""


def run_service(name: str, make_service: Callable[[Resources], Service]) -> None:
    """Run a service in a thread until a stop signal arrives, then let it finish its round."""
    settings = load_settings()
    configure_logging(settings.log_json, settings.log_file)
    resources = open_resources(settings)
    start_metrics_server(settings, name)
    tracer_provider = configure_tracing(settings, name)
    # `sigwait` instead of a handler: a handler that sets an Event for which its own thread waits can deadlock.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    thread = threading.Thread(target=make_service(resources).run, name=name)
    thread.start()
    signal.sigwait(STOP_SIGNALS)
    resources.stop.set()
    thread.join()
    resources.close()
    if tracer_provider is not None:
        tracer_provider.shutdown()
