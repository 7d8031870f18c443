"""`python -m worker.deliveries`: carries out the deliveries of the outbox. Any number of senders may run.

Claim (a transaction), carry out (no transaction, under a lease that a thread renews), record (a transaction, guarded by
the lease). A target has one attempt at a time, so a slow one delays no other.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import structlog
from sqlalchemy.orm import Session

from app.db import files
from app.db.deliveries import credentials, deliveries
from app.db.deliveries.credentials import NoSecretKey
from app.db.engine import transaction
from app.db.jobs import evaluations, leases
from app.db.jobs.leases import FencedError
from app.db.operations import status
from app.db.tables import Delivery, DeliveryTarget, File
from app.domain.deliveries.targets import (
    DeliveryState,
    DirectoryDestination,
    HuggingFaceDestination,
    S3Destination,
    SglangDestination,
    TargetKind,
    VllmDestination,
    parse_destination,
    retry_delay_seconds,
    withdrawal_delay_seconds,
)
from app.domain.evaluations.summary import DeliveryVerdict
from app.log import get_logger
from app.system.host import boottime_seconds
from app.telemetry import metrics, tracing
from worker.deliveries.engine_server import Sglang, Vllm
from worker.deliveries.engines import EngineTarget, PluginTarget, SharedDirectoryTarget
from worker.deliveries.outbound import limited_connections, trust_database
from worker.deliveries.targets import (
    CredentialsLost,
    Delivered,
    DeliveryError,
    DeliveryRefused,
    DirectoryTarget,
    EvaluationPending,
    Target,
    fetch_adapter,
)
from worker.health import write_heartbeat
from worker.jobs import workdir
from worker.jobs.evaluation_record import record_evaluation
from worker.jobs.lease import LeaseKeeper, owner_name
from worker.node.resources import Resources, errors_logged
from worker.reconciler.cleanup import clean_work_directories

SENDER_THREADS = 8
LEASE_SECONDS = 60.0  # a delivery rests that long after its sender was killed, and the reaper's grace
RENEW_SECONDS = 15.0
REPORT_SECONDS = 10.0
OUTCOMES = ("delivered", "withdrawn", "present", "failed", "refused", "waiting")
FAILED_OUTCOMES = ("failed", "refused")
MAX_ERROR_CHARACTERS = 2_000
MIN_HIDDEN_CHARACTERS = 8  # fewer are a part of other words, and no secret

log = get_logger(__name__)


class DeliverySender:
    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.settings = resources.settings
        self._thread_freed = threading.Event()
        self._owner = owner_name("deliveries")
        self._leases: dict[str, LeaseKeeper[Delivery]] = {}  # of the attempts in flight, by delivery
        self._reported_at = -float("inf")
        metrics.begin(metrics.DELIVERY_ATTEMPTS, [kind.value for kind in TargetKind], OUTCOMES)
        trust_database(resources.engine)

    def run(self) -> None:
        """Run rounds until `resources.stop` is set; attempts in flight are then finished, under their leases."""
        log.info("delivery sender started")
        shutil.rmtree(self.settings.work_dir / "deliveries", ignore_errors=True)  # what earlier releases left there
        with ThreadPoolExecutor(SENDER_THREADS, thread_name_prefix="delivery") as pool:
            while self._leases or not self.resources.stop.is_set():
                with errors_logged("round"):
                    write_heartbeat(self.settings, "deliveries")
                    self._report_if_due()
                    is_stopping = self.resources.stop.is_set()
                    for claimed in self.claim(0 if is_stopping else SENDER_THREADS - len(self._leases)):
                        pool.submit(self._attempt_and_release, claimed)
                self._thread_freed.wait(self.settings.delivery_poll_seconds)
                self._thread_freed.clear()

    def claim(self, limit: int) -> list[Delivery]:
        if limit <= 0:
            return []
        claimed_at = boottime_seconds()
        with transaction(self.resources.sessions) as session:
            claimed = deliveries.claim(session, limit, self._owner, LEASE_SECONDS)
        for each in claimed:
            keeper = LeaseKeeper(self.resources, each, claimed_at, LEASE_SECONDS, RENEW_SECONDS)
            self._leases[each.id] = keeper
        return claimed

    def attempt(self, delivery: Delivery) -> None:
        """Carry out one attempt and record its outcome, unless the lease was lost.

        Its span belongs to the trace of the request that created the job.
        """
        job = delivery.job
        ids: dict[str, str | int] = {"delivery": delivery.id, "attempt": delivery.attempt, "job": job.id}
        if job.request_id is not None:
            ids["request_id"] = job.request_id
        attributes = {f"tunery.{name}": value for name, value in ids.items()}
        with (
            tracing.span("deliver attempt", job.traceparent, attributes) as span,
            structlog.contextvars.bound_contextvars(**ids),
            self._leases[delivery.id],
        ):
            outcome = self._attempt(delivery)
            tracing.end_reason(span, outcome, outcome in FAILED_OUTCOMES)

    def _attempt(self, delivery: Delivery) -> str:
        """The outcome of the attempt."""
        started_at = time.monotonic()
        try:
            outcome = self._carry_out_in_time(delivery)
        except DeliveryError as error:
            self._record_failure(delivery, error)
            outcome = error.outcome
        except FencedError:
            raise
        except Exception as error:
            log.exception("delivery failed", delivery=delivery.id)
            text = f"An error of the server: {type(error).__name__}; see its log"
            self._record_failure(delivery, DeliveryError(text))
            outcome = "failed"
        metrics.DELIVERY_ATTEMPTS.labels(delivery.target.kind, outcome).inc()
        metrics.DELIVERY_SECONDS.labels(delivery.target.kind).observe(time.monotonic() - started_at)
        return outcome

    def _carry_out_in_time(self, delivery: Delivery) -> str:
        """Raises DeliveryError."""
        seconds = self.settings.delivery_attempt_seconds
        with limited_connections(seconds) as limit:
            try:
                return self._carry_out(delivery)
            except DeliveryError as error:
                if not limit.is_over or isinstance(error, DeliveryRefused):
                    raise
                text = f"The attempt took longer than {seconds:g} s ({error})"
                late = DeliveryError(
                    f"{text}; if the target is only slow, raise TUNERY_DELIVERY_ATTEMPT_SECONDS of the delivery sender"
                )
                late.location = error.location
                raise late from error

    def _carry_out(self, delivery: Delivery) -> str:
        """Deliver, look, or withdraw, as the state says, and record it. Raises DeliveryError."""
        try:
            token = delivery.target.credentials
            secrets = credentials.decrypt(self.settings.encryption_keys, token) if token else {}
        except NoSecretKey as error:
            raise CredentialsLost(str(error)) from error
        target = self._target(delivery.target, secrets)
        # An engine can forget what it has; None: nothing has to be looked for.
        next_look = leases.expiry(self.settings.delivery_recheck_seconds) if isinstance(target, EngineTarget) else None
        with hidden(list(secrets.values())):
            if delivery.state == DeliveryState.WITHDRAWING:
                target.withdraw(delivery)
                text = f"Withdrawn from {delivery.target.name}: {delivery.served_model}"
                self._record(delivery, text, state=DeliveryState.WITHDRAWN, next_attempt_at=None, location=None)
                return "withdrawn"
            was_there = delivery.state == DeliveryState.DELIVERED
            if was_there and isinstance(target, EngineTarget) and target.has(delivery):
                self._record(delivery, None, tries=0, next_attempt_at=next_look)
                return "present"
            self._record_delivered(delivery, self._deliver(delivery, target), next_look)
            return "delivered"

    def _report_if_due(self) -> None:
        """Report for the operator's status that this sender works, and clean up after attempts that were killed."""
        if time.monotonic() - self._reported_at >= REPORT_SECONDS:
            with transaction(self.resources.sessions) as session:
                status.report(session, "deliveries")
            clean_work_directories(self.resources, "delivery_")
            self._reported_at = time.monotonic()

    def _attempt_and_release(self, claimed: Delivery) -> None:
        try:
            self.attempt(claimed)
        except FencedError:
            log.info("delivery not recorded: its lease is lost", delivery=claimed.id)
        finally:
            self._leases.pop(claimed.id)
            self._thread_freed.set()

    def _target(self, row: DeliveryTarget, secrets: Mapping[str, str]) -> Target:
        timeout_seconds, allowed = self.settings.delivery_timeout_seconds, self.settings.delivery_directories
        match parse_destination(row.destination):
            case DirectoryDestination() as destination:
                return DirectoryTarget(destination, allowed)
            case VllmDestination() | SglangDestination() as destination:
                engine = Vllm() if destination.kind == "vllm" else Sglang()
                key, shared_path = secrets.get("api_key"), destination.shared_path
                if shared_path is None:
                    return PluginTarget(destination, engine, key, timeout_seconds)
                return SharedDirectoryTarget(destination, engine, key, timeout_seconds, shared_path, allowed)
            case S3Destination() as destination:
                from worker.deliveries.s3 import S3Target  # boto3 takes 0.3 s and 30 MB

                return S3Target(destination, secrets, timeout_seconds)
            case HuggingFaceDestination() as destination:
                from worker.deliveries.huggingface import HuggingFaceTarget

                return HuggingFaceTarget(destination, secrets.get("token", ""), timeout_seconds)

    def _deliver(self, delivery: Delivery, target: Target) -> Delivered:
        """Raises DeliveryError."""
        keeper = self._leases[delivery.id]

        def load(session: Session) -> tuple[dict[str, File], DeliveryVerdict | None, dict[str, Any] | None]:
            delivery.same_name = deliveries.of_name(session, delivery)
            is_result = delivery.model == delivery.job.fine_tuned_model
            verdict = evaluations.verdict_on_delivery(session, delivery.job) if is_result else None
            rows = files.get_visible(session, delivery.checkpoint.file_ids)
            return rows, verdict, evaluations.newest_headline(session, delivery.model)

        rows, verdict, evaluation = keeper.transact(load)
        if verdict is not None and not verdict.is_allowed:
            refusal = EvaluationPending if verdict.is_allowed is None else DeliveryRefused
            raise refusal(f"The condition of the evaluation (promote_if) does not allow it: {verdict.reason}")
        if len(rows) < len(delivery.checkpoint.file_ids):
            raise DeliveryRefused("Files of the adapter were deleted, so it cannot be delivered")
        try:
            fetch_adapter(self.resources.storage, list(rows.values()), keeper.directory)
            record_evaluation(keeper.directory, evaluation)
            return target.deliver(delivery, keeper.directory)
        finally:
            workdir.remove(keeper.directory)

    def _record_delivered(self, delivery: Delivery, delivered: Delivered, next_look: Any) -> None:
        name, check = delivery.target.name, delivered.check
        text = f"Delivered to {name} as {delivery.served_model}"
        if delivery.state == DeliveryState.DELIVERED:
            text = f"{name} had lost {delivery.served_model}; it was delivered again"
        gap = f"; it replaced another one in {delivered.gap_seconds:.3f} s" if delivered.gap_seconds else ""
        self._record(
            delivery,
            text + (f" (check: {check.verdict})" if check else "") + gap,
            state=DeliveryState.DELIVERED,
            tries=0,
            location=delivered.location | {"served_model": delivery.served_model},
            served_check=check and check.model_dump(mode="json"),
            next_attempt_at=next_look,
            delivered_at=delivery.delivered_at or leases.expiry(0),
        )

    def _record_failure(self, delivery: Delivery, error: DeliveryError) -> None:
        """Schedule the next attempt, or end the delivery. What is delivered or to be withdrawn has no limit."""
        columns: dict[str, Any] = {"error": str(error)[:MAX_ERROR_CHARACTERS]}
        seconds: float | None
        match delivery.state:
            case DeliveryState.WITHDRAWING:
                verb, seconds = "withdrawn", withdrawal_delay_seconds(delivery.tries, random.random())
            case DeliveryState.DELIVERED:
                verb, seconds = "found", self.settings.delivery_recheck_seconds
            case _:
                verb, seconds = "delivered", retry_delay_seconds(delivery.tries, random.random())
        if error.location is not None:
            columns["location"] = error.location | {"served_model": delivery.served_model}
        if error.uncounted_seconds is not None:
            seconds, columns["tries"] = error.uncounted_seconds, delivery.tries - 1
        if isinstance(error, DeliveryRefused):
            seconds, columns["served_check"] = None, error.check and error.check.model_dump(mode="json")
        if seconds is None:
            columns |= {"state": DeliveryState.FAILED, "next_attempt_at": None}
        else:
            columns["next_attempt_at"] = leases.expiry(seconds)
        then = "it is not tried again" if seconds is None else f"it is tried again in {seconds:.0f} s"
        is_news = seconds is None or delivery.error != columns["error"]
        text = f"{delivery.target.name}: {delivery.served_model} was not {verb}: {error}; {then}"
        self._record(delivery, text if is_news else None, "error" if seconds is None else "warn", **columns)

    def _record(self, delivery: Delivery, message: str | None, level: str = "info", **columns: Any) -> None:
        """Raises FencedError."""
        keeper = self._leases[delivery.id]

        def write(session: Session) -> None:
            is_recorded = deliveries.record(session, delivery, keeper.lease, **{"error": None} | columns)
            if columns.get("state") == DeliveryState.DELIVERED:  # there, also if it is to be withdrawn by now
                deliveries.end_replaced(session, delivery)
            if not is_recorded:
                log.info("delivery not recorded: it has changed since the claim", delivery=delivery.id)
            elif message is not None:
                data = {"delivery": delivery.id, "target": delivery.target.name}
                deliveries.add_event(session, delivery.job_id, message, level, data)

        keeper.finish(write)


@contextmanager
def hidden(secrets: Collection[str]) -> Iterator[None]:
    """Mask credentials in the text of an error: a server's response may repeat what it was sent."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if found := [each for each in secrets if len(each) >= MIN_HIDDEN_CHARACTERS and each in text]:
            for secret in sorted(found, key=len, reverse=True):
                text = text.replace(secret, "***")
            error.args = (text,)
            error.__cause__ = error.__context__ = None  # they have the same text
        raise
