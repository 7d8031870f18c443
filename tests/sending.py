"""A real webhook sender in a thread, and a receiver that it may connect to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.settings import Settings
from tests.receiver import Receiver, receiving
from worker.node.resources import open_resources
from worker.webhooks.sender import WebhookSender

TO_LOOPBACK = {"webhook_allow_http": True, "webhook_allowed_networks": "127.0.0.0/8", "webhook_poll_seconds": 0.05}


@contextmanager
def sending(settings: Settings) -> Iterator[Receiver]:
    """Run a sender and a receiver until the block ends; yield the receiver."""
    resources = open_resources(settings)
    thread = threading.Thread(target=WebhookSender(resources).run)
    with receiving() as receiver:
        thread.start()
        try:
            yield receiver
        finally:
            resources.stop.set()
            thread.join(20)
    resources.close()
    assert not thread.is_alive()
