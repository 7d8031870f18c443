"""Which of the registered base models this host has, to the byte, and what its GPU slots offer to jobs.

Hashing a large model takes minutes, so it happens in a thread of its own; until it is done, no job of that model is
taken here. Later looks compare sizes and times of the files, and hash again only what has changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from app.db import models
from app.db.engine import transaction
from app.db.tables import BaseModelRow
from app.domain.scheduling.worker_capacity import Offer
from app.log import get_logger
from worker.jobs.lease import DATABASE_AWAY
from worker.jobs.prepare import CannotStart, check_base
from worker.node.device import training_device
from worker.node.resources import Resources

log = get_logger(__name__)


class Shelf:
    """`changed` is called when another model is there, or one is not any more."""

    def __init__(self, resources: Resources, changed: Callable[[], None]) -> None:
        self._resources = resources
        self._changed = changed
        self._names: frozenset[str] = frozenset()
        self._thread = threading.Thread(target=self._keep, name="shelf", daemon=True)  # nobody waits for a hash

    def start(self) -> None:
        self._thread.start()

    def offer(self) -> Offer:
        settings = self._resources.settings
        device = training_device(settings.device)
        labels = frozenset(settings.labels)
        return Offer(device.kind, device.memory_bytes, self._names, labels, settings.gpus_per_job)

    def about(self) -> dict[str, Any]:
        """For the worker's row."""
        settings = self._resources.settings
        return {
            "models": sorted(self._names), "labels": sorted(settings.labels), "gpus_per_job": settings.gpus_per_job
        }  # fmt: skip

    def look(self) -> None:
        """Raises what DATABASE_AWAY names."""
        with transaction(self._resources.sessions) as session:
            rows = models.list_base(session)
        for row in rows:
            self._set(row.name, _is_whole(row))
        self._put(self._names & {row.name for row in rows})

    def _keep(self) -> None:
        stop = self._resources.stop
        while not stop.is_set():
            try:
                self.look()
            except DATABASE_AWAY as error:
                log.warning("models not looked at", error=str(error).split("\n", 1)[0])
            except Exception:
                log.exception("models not looked at")
            stop.wait(self._resources.settings.lease_renew_seconds)

    def _set(self, name: str, is_there: bool) -> None:
        self._put(self._names | {name} if is_there else self._names - {name})

    def _put(self, names: frozenset[str]) -> None:
        if names != self._names:
            log.info("base models here", names=sorted(names))
            self._names = names
            self._changed()


def _is_whole(row: BaseModelRow) -> bool:
    try:
        check_base(row)
    except CannotStart as refusal:
        log.debug("base model not here", model=row.name, why=str(refusal))
        return False
    return True
