"""The inventory of registered base models whose verified files this host has, and the capacity its GPU slots offer.

Hashing a large model takes minutes, so it runs in its own thread; until it is done, this host claims no job of that
model. Later checks compare sizes and times of the files, and hash only files that changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from app.db.base_models import models
from app.db.engine import transaction
from app.domain.scheduling.worker_capacity import WorkerCapacity
from app.log import get_logger
from worker.jobs.base_and_adapter import AttemptFailed, verify_base
from worker.node.device import training_device, training_gpu_uuids
from worker.node.resources import Resources, errors_logged

log = get_logger(__name__)


class ModelInventory:
    """`on_change` is called when a model becomes available or unavailable."""

    def __init__(self, resources: Resources, on_change: Callable[[], None]) -> None:
        self._resources = resources
        self._on_change = on_change
        self._names: frozenset[str] = frozenset()
        self._thread = threading.Thread(
            target=self._refresh_loop, name="models", daemon=True
        )  # a hash blocks no shutdown

    def start(self) -> None:
        self._thread.start()

    def capacity(self) -> WorkerCapacity:
        """What the GPU slots of this host offer to jobs."""
        settings = self._resources.settings
        device = training_device(settings.device)
        labels = frozenset(settings.labels)
        return WorkerCapacity(
            device.kind,
            device.memory_bytes,
            self._names,
            labels,
            settings.gpus_per_job,
            settings.slots_per_gpu,
            training_gpu_uuids(settings.gpus_per_job, settings.device),
        )

    def describe(self) -> dict[str, Any]:
        """The inventory's part of the workers' row."""
        settings = self._resources.settings
        return {
            "models": sorted(self._names),
            "labels": sorted(settings.labels),
            "gpus_per_job": settings.gpus_per_job,
            "slots_per_gpu": settings.slots_per_gpu,
            "trial_answers": settings.trial_answers,
            "gpu_uuids": list(training_gpu_uuids(settings.gpus_per_job, settings.device)),
        }

    def refresh(self) -> None:
        """Verify every registered base model. Raises DATABASE_UNAVAILABLE."""
        with transaction(self._resources.sessions) as session:
            rows = models.list_base(session)
        for row in rows:  # each result counts at once, because the next hash may take minutes
            try:
                verify_base(row)
                self._set_names(self._names | {row.name})
            except AttemptFailed as error:
                log.debug("base model not available", model=row.name, why=str(error))
                self._set_names(self._names - {row.name})
        self._set_names(self._names & {row.name for row in rows})

    def _refresh_loop(self) -> None:
        stop = self._resources.stop
        while not stop.is_set():
            with errors_logged("check of base models"):
                self.refresh()
            stop.wait(self._resources.settings.lease_renew_seconds)

    def _set_names(self, names: frozenset[str]) -> None:
        if names != self._names:
            log.info("base models available", names=sorted(names))
            self._names = names
            self._on_change()
