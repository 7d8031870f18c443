"""The slots of one worker process, and its sign of life."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.scheduling import workers
from app.job_queue import Queue
from app.log import get_logger
from app.settings import Settings
from worker.exports.exporter import Exporter, can_merge
from worker.health import beat
from worker.jobs.lease import DATABASE_AWAY
from worker.jobs.supervisor import Supervisor
from worker.jobs.trainer_process import TRAINER
from worker.node.device import describe_machine
from worker.node.local_models import Shelf
from worker.node.resources import Resources, open_resources
from worker.node.slot import Slot, TakeOne
from worker.validation.validate import Validator

FAREWELL_SECONDS = 15  # on top of the drain's grace: writing the end of the attempt

log = get_logger(__name__)


class Station:
    """Made before Celery is up, opened when it knows its name and queues, closed when it stops."""

    def __init__(self, settings: Settings, trainer: Sequence[str] = TRAINER) -> None:
        self.settings = settings
        self.trainer = trainer
        self.slots: dict[Queue, Slot] = {}
        self.exporting: Slot | None = None  # beside the others: a merge takes minutes, in which nothing must wait
        self._resources: Resources | None = None
        self._pulse: threading.Thread | None = None
        self._shelf: Shelf | None = None
        self._about_changed = threading.Event()

    def open(self, node: str, queues: Iterable[Queue]) -> None:
        """Start a slot for each queue. `node` is Celery's name for us: "gpu0@host"."""
        self._resources = open_resources(self.settings)
        self._shelf = Shelf(self._resources, self._offer_changed)
        for queue in queues:
            slot = Slot(self._resources, queue, slot_name(queue, node), self._taker(self._resources, queue, node))
            self.slots[queue] = slot
            slot.start()
        if "gpu" in self.slots:
            self._shelf.start()
        if can_merge():
            self.exporting = Slot(self._resources, "cpu", f"export.{node}", self._exporter(self._resources))
            self.exporting.start()
        self._pulse = threading.Thread(target=self._beat, args=(self._resources,), name="pulse", daemon=True)
        self._pulse.start()

    def look_for_work(self, queue: Queue) -> None:
        if self.exporting is not None:
            self.exporting.wake()
        if queue in self.slots:
            self.slots[queue].look_for_work()

    def stop(self) -> None:
        """Take nothing new, drain what runs. Called in a signal handler, so it sets events and nothing else."""
        if self._resources is not None:
            self._resources.stop.set()
            self._about_changed.set()
            for slot in self._all_slots():
                slot.wake()

    def close(self) -> None:
        """Wait until everything has drained, as long as the grace allows. Twice is once."""
        if self._resources is None:
            return
        if not self._resources.stop.is_set():
            self.stop()
        grace_seconds = self.settings.drain_grace_seconds + FAREWELL_SECONDS
        for slot in self._all_slots():
            if not slot.join(grace_seconds):
                log.error("a slot did not stop in time", slot=slot.name)
        if self._pulse is not None:
            self._pulse.join(timeout=FAREWELL_SECONDS)
        self._resources.close()
        self._resources = None

    def _taker(self, resources: Resources, queue: Queue, node: str) -> Callable[[str], TakeOne]:
        if queue == "cpu":
            return lambda owner: Validator(resources, owner).take_one
        lock = self.settings.data_dir / "run" / f"{slot_name(queue, node)}.trainer.lock"
        assert self._shelf is not None
        offer = self._shelf.offer
        return lambda owner: Supervisor(resources, owner, lock, self.trainer, offer).take_one

    def _offer_changed(self) -> None:
        """Tell of it at once, and look whether there is a job for it."""
        self._about_changed.set()
        for slot in self.slots.values():
            slot.wake()

    def _exporter(self, resources: Resources) -> Callable[[str], TakeOne]:
        """One merge at a time on this host, however many workers it has."""
        lock = self.settings.data_dir / "run" / f"export@{socket.gethostname()}.merge.lock"
        return lambda owner: Exporter(resources, owner, lock).take_one

    def _all_slots(self) -> list[Slot]:
        return [*self.slots.values(), *([self.exporting] if self.exporting else [])]

    def _beat(self, resources: Resources) -> None:
        """Keep the rows of our slots fresh; take them away when we go."""
        assert self._shelf is not None
        machine = describe_machine(self.settings.device)
        while not resources.stop.is_set():
            self._about_changed.clear()
            self._touch()
            about = machine | self._shelf.about()
            self._tell(resources, partial(_seen, about=about))
            self._about_changed.wait(self.settings.lease_renew_seconds)
        while any(not slot.join(self.settings.lease_renew_seconds) for slot in self._all_slots()):
            self._touch()  # draining is life, too
        self._tell(resources, lambda session, slot: workers.remove(session, slot.owner))

    def _touch(self) -> None:
        for slot in self.slots.values():
            if slot.is_alive:
                try:
                    beat(self.settings, slot.queue)
                except OSError as error:
                    log.warning("sign of life not given", error=str(error))

    def _tell(self, resources: Resources, write: Callable[[Session, Slot], None]) -> None:
        try:
            with transaction(resources.sessions) as session:
                for slot in self.slots.values():
                    write(session, slot)
        except DATABASE_AWAY as error:
            log.warning("sign of life not given", error=str(error).split("\n", 1)[0])
        except Exception:
            log.exception("sign of life not given")


def slot_name(queue: Queue, node: str) -> str:
    """Unique among the slots of one process, as a slot's name is the name of its lock."""
    return node if node.startswith(queue) else f"{queue}.{node}"


def _seen(session: Session, slot: Slot, about: dict[str, Any]) -> None:
    workers.heartbeat(session, slot.owner, slot.queue, socket.gethostname(), os.getpid(), about)
