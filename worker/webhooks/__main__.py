"""`python -m worker.webhooks`."""

from __future__ import annotations

from worker.node.resources import run_service
from worker.webhooks.sender import WebhookSender

run_service("webhooks", WebhookSender)
