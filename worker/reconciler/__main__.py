"""`python -m worker.reconciler`."""

from __future__ import annotations

from worker.node.resources import run_service
from worker.reconciler.reconciler import Reconciler

run_service("reconciler", Reconciler)
