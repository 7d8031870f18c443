"""The slots of one worker process, and its heartbeat."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path

from prometheus_client import REGISTRY
from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.scheduling import device_losses, workers
from app.domain.artifacts.exports import ExportType
from app.job_queue import Queue
from app.log import get_logger
from app.settings import Settings
from app.telemetry import metrics
from app.telemetry.exposition import start_metrics_server
from app.telemetry.tracing import configure_tracing
from worker.base_models import Registrar
from worker.exports import Exporter, supported_types
from worker.health import write_heartbeat
from worker.jobs.lease import begin_metrics
from worker.jobs.supervisor import JobSupervisor
from worker.jobs.trainer_process import TRAINER_COMMAND
from worker.node.device import GpuMetrics, describe_machine
from worker.node.disk_space import describe_data_disk
from worker.node.local_models import ModelInventory
from worker.node.resources import Resources, errors_logged, open_resources
from worker.node.slot import RunNext, Slot
from worker.reconciler.cleanup import clean_work_directories
from worker.validation import Validator

CLEANUP_INTERVAL_SECONDS = 600
SHUTDOWN_TIMEOUT_SECONDS = 15  # in addition to the grace period of a drain: to end the attempts in the database

log = get_logger(__name__)


class WorkerNode:
    """The slots of one worker process: created before Celery starts, opened when Celery has set its name and queues."""

    def __init__(self, settings: Settings, trainer: Sequence[str] = TRAINER_COMMAND) -> None:
        self.settings = settings
        self.trainer = trainer
        self.slots: dict[Queue, Slot] = {}
        self.export_slot: Slot | None = None  # also for registrations; a slot of its own, because they take minutes
        self._resources: Resources | None = None
        self._is_out_of_service = False  # the GPU slot, as of the last heartbeat
        self._closing = ExitStack()  # what `close` does after the slots have ended, the last first
        self._heartbeat_due = threading.Event()

    def open(self, node: str, queues: Iterable[Queue]) -> None:
        """Start a slot for each queue. `node` is Celery's name of this process: "gpu0@host"."""
        resources = self._resources = open_resources(self.settings)
        self._closing.callback(resources.close)
        if (tracer_provider := configure_tracing(self.settings, node.partition("@")[0])) is not None:
            self._closing.callback(tracer_provider.shutdown)
        models = ModelInventory(resources, self._on_models_changed)
        for queue in queues:
            name = slot_name(queue, node)
            self.slots[queue] = Slot(resources, queue, name, self._make_runner(resources, models, queue, name))
            self.slots[queue].start()
        if "gpu" in self.slots:
            models.start()
        types = supported_types()
        if types:
            # One export at a time on this host, however many workers it has.
            lock_path = self.settings.data_dir / "run" / f"export@{socket.gethostname()}.merge.lock"
            self.export_slot = Slot(
                resources,
                "cpu",
                f"export.{node}",
                lambda owner: _run_export_or_registration(resources, owner, lock_path, types),
            )
            self.export_slot.start()
        begin_metrics()
        if (server := start_metrics_server(self.settings, f"worker:{node.partition('@')[0]}")) is not None:
            self._closing.callback(server.server_close)
            self._closing.callback(server.shutdown)
            if "gpu" in self.slots:
                REGISTRY.register(GpuMetrics())
        heartbeat = threading.Thread(
            target=self._heartbeat_loop, args=(resources, models), name="heartbeat", daemon=True
        )
        heartbeat.start()
        self._closing.callback(heartbeat.join, SHUTDOWN_TIMEOUT_SECONDS)

    def handle_hint(self, queue: Queue) -> None:
        """Wake the slots; returns when the slot of `queue` is idle again."""
        metrics.HINTS_RECEIVED.labels(queue).inc()
        if self.export_slot is not None:
            self.export_slot.wake()
        if queue in self.slots:
            self.slots[queue].run_until_idle()

    def stop(self) -> None:
        """Claim no further job and drain the running ones. Safe in a signal handler, because it only sets events."""
        if self._resources is not None:
            self._resources.stop.set()
            self._heartbeat_due.set()
            for slot in self._all_slots():
                slot.wake()

    def close(self) -> None:
        """Wait until every slot has drained, for the grace period at most. A second call does nothing."""
        if self._resources is None:
            return
        self.stop()
        with self._closing:
            for slot in self._all_slots():  # also those that had started when `open` failed
                if not slot.join(self.settings.drain_grace_seconds + SHUTDOWN_TIMEOUT_SECONDS):
                    log.error("a slot did not stop in time", slot=slot.name)
        self._resources = None

    def _make_runner(
        self, resources: Resources, models: ModelInventory, queue: Queue, name: str
    ) -> Callable[[str], RunNext]:
        if queue == "cpu":
            return lambda owner: Validator(resources, owner).run_next
        lock_path = self.settings.data_dir / "run" / f"{name}.trainer.lock"

        def make(owner: str) -> RunNext:
            from worker.evaluations.evaluator import Evaluator  # its libraries are not on workers that only validate

            alone = self._start_trial_answers(resources, models, owner, name)
            supervisor = JobSupervisor(resources, owner, lock_path, self.trainer, models.capacity, alone)
            lock = supervisor.warm_trainer.lock
            evaluator = Evaluator(resources, owner, lock, models.capacity, alone=alone)
            return partial(_run_alternately, evaluator.run_next, supervisor.run_next)

        return make

    def _start_trial_answers(
        self, resources: Resources, models: ModelInventory, owner: str, name: str
    ) -> Callable[[], AbstractContextManager[None]]:
        """Offer the idle slot for trial answers, if they are on; returns what suspends them."""
        if not self.settings.trial_answers or self.settings.slots_per_gpu > 1:  # jobs of other slots need the memory
            return nullcontext
        from worker.answers import TrialAnswers  # its libraries are not on workers that only validate

        def answerable() -> frozenset[str]:
            return (not self._is_out_of_service and models.capacity().models) or frozenset()

        trial_answers = TrialAnswers(resources, owner, name, answerable)
        trial_answers.start()
        self._closing.callback(trial_answers.close)
        return trial_answers.suspended

    def _on_models_changed(self) -> None:
        """Publish the new inventory at once, and look for a job that it allows."""
        self._heartbeat_due.set()
        for slot in self.slots.values():
            slot.wake()

    def _all_slots(self) -> list[Slot]:
        return [*self.slots.values(), *([self.export_slot] if self.export_slot else [])]

    def _heartbeat_loop(self, resources: Resources, models: ModelInventory) -> None:
        """Refresh heartbeat files and workers' rows; delete the rows at shutdown."""
        machine = describe_machine(self.settings.device) | {"exports": list(supported_types())}

        def refresh(session: Session, slot: Slot) -> None:
            disk = describe_data_disk(self.settings.data_dir, self.settings.low_disk_percent)
            about = machine | models.describe() | {"disk": disk}
            workers.heartbeat(session, slot.owner, slot.queue, socket.gethostname(), os.getpid(), about)
            if slot.queue == "gpu":
                self._is_out_of_service = device_losses.is_out_of_service(session, slot.owner)

        cleaned_up_at = -float("inf")
        while not resources.stop.is_set():
            if time.monotonic() - cleaned_up_at > CLEANUP_INTERVAL_SECONDS:
                cleaned_up_at = time.monotonic()
                # The reconciler may have another data directory.
                with errors_logged("cleanup of work directories"):
                    clean_work_directories(resources)
            self._heartbeat_due.clear()
            self._write_heartbeat_files()
            self._write_rows(resources, refresh)
            self._heartbeat_due.wait(self.settings.lease_renew_seconds)
        while any(not slot.join(self.settings.lease_renew_seconds) for slot in self._all_slots()):
            self._write_heartbeat_files()  # a worker that drains is alive
        self._write_rows(resources, lambda session, slot: workers.remove(session, slot.owner))

    def _write_heartbeat_files(self) -> None:
        for slot in self.slots.values():
            if slot.is_alive:
                write_heartbeat(self.settings, slot.queue)

    def _write_rows(self, resources: Resources, write: Callable[[Session, Slot], None]) -> None:
        with errors_logged("update of the worker rows"), transaction(resources.sessions) as session:
            for slot in self.slots.values():
                write(session, slot)


def _run_alternately(evaluate: RunNext, train: RunNext) -> bool:
    """Run the next evaluation and then the next job, so that neither waits for all of the others."""
    was_evaluated = evaluate()
    return train() or was_evaluated


def slot_name(queue: Queue, node: str) -> str:
    """A name that is unique among the slots of one process, because it is also the name of the slot's lock."""
    return node if node.startswith(queue) else f"{queue}.{node}"


def _run_export_or_registration(
    resources: Resources, owner: str, lock_path: Path, types: Sequence[ExportType]
) -> RunNext:
    exporter, registrar = Exporter(resources, owner, lock_path, types), Registrar(resources, owner)
    return lambda: exporter.run_next() or registrar.run_next()
