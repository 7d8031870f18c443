"""`python -m worker.deliveries`."""

from __future__ import annotations

import logging

from app.settings import load_settings
from worker.deliveries.outbound import guard_connections
from worker.deliveries.sender import DeliverySender
from worker.node.resources import run_service

logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every look for what engines have
with guard_connections(load_settings().delivery_networks):
    run_service("deliveries", DeliverySender)
