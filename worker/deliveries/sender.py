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

from app.db.deliveries import credentials, deliveries
from app.db.deliveries.credentials import NoSecretKey
from app.db.deliveries.deliveries import ClaimedDelivery
from app.db.engine import DATABASE_UNAVAILABLE, first_line, transaction
from app.db.files import files
from app.db.jobs import evaluations, leases
from app.db.jobs.leases import FencedError
from app.db.operations import status
from app.db.tables import Delivery, File
from app.domain.deliveries import states
from app.domain.deliveries.served_check import ServedCheck, ServedReference
from app.domain.deliveries.states import DeliveryState
from app.domain.deliveries.targets import (
    DirectoryDestination,
    HuggingFaceDestination,
    S3Destination,
    SglangDestination,
    TargetKind,
    VllmDestination,
    parse_destination,
)
from app.domain.evaluations.promotion import DeliveryVerdict
from app.log import get_logger
from app.system.host import boottime_seconds
from app.telemetry import metrics, tracing
from worker.deliveries import targets
from worker.deliveries.directory import DirectoryTarget, SharedDirectoryTarget
from worker.deliveries.engines import PluginTarget, Sglang, Vllm
from worker.deliveries.outbound import limited_connections, trust_database
from worker.deliveries.targets import (
    AdapterDelivery,
    CredentialsLost,
    Delivered,
    DeliveryError,
    DeliveryRefused,
    EvaluationPending,
    Target,
)
from worker.health import write_heartbeat
from worker.jobs import workdir
from worker.jobs.lease import LeaseKeeper, owner_name
from worker.node.resources import Resources
from worker.reconciler.cleanup import clean_work_directories

SENDER_THREADS = 8
LEASE_SECONDS = 60.0  # a delivery rests that long after its sender was killed, and the reaper's grace
RENEW_SECONDS = 15.0
REPORT_SECONDS = 10.0
OUTCOMES = ("delivered", "withdrawn", "present", "failed", "refused", "waiting")
FAILED_OUTCOMES = ("failed", "refused")
OUTCOMES_OF_ERRORS: Mapping[type[DeliveryError], str] = {DeliveryRefused: "refused", EvaluationPending: "waiting"}
# Until it looks again for the key, or for the end of the evaluation, which connects to nothing.
UNCOUNTED_SECONDS: Mapping[type[DeliveryError], float] = {CredentialsLost: 60.0, EvaluationPending: 20.0}
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
                try:
                    write_heartbeat(self.settings, "deliveries")
                    self._report_if_due()
                    is_stopping = self.resources.stop.is_set()
                    for claimed in self.claim(0 if is_stopping else SENDER_THREADS - len(self._leases)):
                        pool.submit(self._attempt_and_release, claimed)
                except DATABASE_UNAVAILABLE as error:
                    log.warning("database unavailable", error=first_line(error))
                except Exception:
                    log.exception("round failed")
                self._thread_freed.wait(self.settings.delivery_poll_seconds)
                self._thread_freed.clear()

    def claim(self, limit: int) -> list[ClaimedDelivery]:
        if limit <= 0:
            return []
        claimed_at = boottime_seconds()
        with transaction(self.resources.sessions) as session:
            claimed = deliveries.claim(session, limit, self._owner, LEASE_SECONDS)
        for each in claimed:
            keeper = LeaseKeeper(self.resources, each.delivery, claimed_at, LEASE_SECONDS, RENEW_SECONDS)
            self._leases[each.delivery.id] = keeper
        return claimed

    def attempt(self, claimed: ClaimedDelivery) -> None:
        """Carry out one attempt and record its outcome, unless the lease was lost.

        Its span belongs to the trace of the request that created the job.
        """
        delivery, job = claimed.delivery, claimed.job
        ids: dict[str, str | int] = {"delivery": delivery.id, "attempt": delivery.attempt, "job": job.id}
        if job.request_id is not None:
            ids["request_id"] = job.request_id
        attributes = {f"tunery.{name}": value for name, value in ids.items()}
        with (
            tracing.span("deliver attempt", job.traceparent, attributes) as span,
            structlog.contextvars.bound_contextvars(**ids),
            self._leases[delivery.id],
        ):
            outcome = self._attempt(claimed)
            tracing.end_reason(span, outcome, outcome in FAILED_OUTCOMES)

    def _attempt(self, claimed: ClaimedDelivery) -> str:
        """The outcome of the attempt."""
        started_at = time.monotonic()
        try:
            outcome = self._carry_out_in_time(claimed)
        except DeliveryError as error:
            self._record_failure(claimed, error)
            outcome = OUTCOMES_OF_ERRORS.get(type(error), "failed")
        except FencedError:
            raise
        except Exception as error:
            log.exception("delivery failed", delivery=claimed.delivery.id)
            self._record_failure(claimed, DeliveryError(f"An error of the server: {type(error).__name__}; see its log"))
            outcome = "failed"
        metrics.DELIVERY_ATTEMPTS.labels(claimed.target.kind, outcome).inc()
        metrics.DELIVERY_SECONDS.labels(claimed.target.kind).observe(time.monotonic() - started_at)
        return outcome

    def _carry_out_in_time(self, claimed: ClaimedDelivery) -> str:
        """Raises DeliveryError."""
        seconds = self.settings.delivery_attempt_seconds
        with limited_connections(seconds) as limit:
            try:
                return self._carry_out(claimed)
            except DeliveryError as error:
                if not limit.is_over or isinstance(error, DeliveryRefused):
                    raise
                text = f"The attempt took longer than {seconds:g} s ({error})"
                late = DeliveryError(
                    f"{text}; if the target is only slow, raise TUNERY_DELIVERY_ATTEMPT_SECONDS of the delivery sender"
                )
                late.location = error.location
                raise late from error

    def _carry_out(self, claimed: ClaimedDelivery) -> str:
        """Deliver, look, or withdraw, as the state says, and record it. Raises DeliveryError."""
        secrets = self._secrets(claimed)
        target = self._target(claimed, secrets)
        with hidden(list(secrets.values())):
            match claimed.delivery.state:
                case DeliveryState.WITHDRAWING:
                    targets.withdraw_everywhere(target, _adapter_delivery(claimed))
                    self._record_withdrawn(claimed)
                    return "withdrawn"
                case DeliveryState.DELIVERED if target.has(_adapter_delivery(claimed)):
                    self._record(claimed, None, error=None, tries=0, next_attempt_at=self._next_look(target))
                    return "present"
            self._record_delivered(claimed, target, self._deliver(claimed, target))
            return "delivered"

    def _report_if_due(self) -> None:
        """Report for the operator's status that this sender works, and clean up after attempts that were killed."""
        if time.monotonic() - self._reported_at >= REPORT_SECONDS:
            with transaction(self.resources.sessions) as session:
                status.report(session, "deliveries")
            clean_work_directories(self.resources)
            self._reported_at = time.monotonic()

    def _attempt_and_release(self, claimed: ClaimedDelivery) -> None:
        try:
            self.attempt(claimed)
        except FencedError:
            log.info("delivery not recorded: its lease is lost", delivery=claimed.delivery.id)
        finally:
            self._leases.pop(claimed.delivery.id)
            self._thread_freed.set()

    def _secrets(self, claimed: ClaimedDelivery) -> dict[str, str]:
        """Raises CredentialsLost."""
        token = claimed.target.credentials
        try:
            return credentials.decrypt(self.settings.encryption_keys, token) if token else {}
        except NoSecretKey as error:
            raise CredentialsLost(str(error)) from error

    def _target(self, claimed: ClaimedDelivery, secrets: Mapping[str, str]) -> Target:
        settings, row = self.settings, claimed.target
        timeout_seconds, allowed = settings.delivery_timeout_seconds, settings.delivery_directories
        match parse_destination(row.destination):
            case DirectoryDestination() as destination:
                return DirectoryTarget(destination, allowed)
            case VllmDestination(shared_path=None) as destination:
                return PluginTarget(destination, Vllm(), secrets.get("api_key"), timeout_seconds)
            case VllmDestination() | SglangDestination() as destination:
                engine = Vllm() if destination.kind == "vllm" else Sglang()
                shared_path = destination.shared_path or ""
                key = secrets.get("api_key")
                return SharedDirectoryTarget(destination, engine, key, timeout_seconds, shared_path, allowed)
            case S3Destination() as destination:
                from worker.deliveries.s3 import S3Target  # boto3 takes 0.3 s and 30 MB

                return S3Target(destination, secrets, timeout_seconds)
            case HuggingFaceDestination() as destination:
                from worker.deliveries.huggingface import HuggingFaceTarget

                return HuggingFaceTarget(destination, secrets.get("token", ""), timeout_seconds)

    def _deliver(self, claimed: ClaimedDelivery, target: Target) -> Delivered:
        """Raises DeliveryError."""
        delivery = claimed.delivery
        keeper = self._leases[delivery.id]

        def load(session: Session) -> tuple[dict[str, File], DeliveryVerdict | None, AdapterDelivery]:
            rows = files.get_visible(session, claimed.checkpoint.file_ids)
            is_result = delivery.model == claimed.job.fine_tuned_model
            verdict = evaluations.verdict_on_delivery(session, claimed.job) if is_result else None
            locations = deliveries.locations_of_name(session, delivery)
            return rows, verdict, targets.with_known_paths(_adapter_delivery(claimed), locations)

        rows, verdict, adapter = keeper.transact(load)
        if verdict is not None and not verdict.is_allowed:
            refusal = EvaluationPending if verdict.is_allowed is None else DeliveryRefused
            raise refusal(f"The condition of the evaluation (promote_if) does not allow it: {verdict.reason}")
        if len(rows) < len(claimed.checkpoint.file_ids):
            raise DeliveryRefused("Files of the adapter were deleted, so it cannot be delivered")
        try:
            targets.fetch_adapter(self.resources.storage, list(rows.values()), keeper.directory)
            return target.deliver(adapter, keeper.directory)
        finally:
            workdir.remove(keeper.directory)

    def _next_look(self, target: Target) -> Any:
        return leases.expiry(self.settings.delivery_recheck_seconds) if target.can_forget else None

    def _record_delivered(self, claimed: ClaimedDelivery, target: Target, delivered: Delivered) -> None:
        delivery, name = claimed.delivery, claimed.target.name
        was_lost = delivery.state == DeliveryState.DELIVERED
        text = f"Delivered to {name} as {delivery.served_model}"
        if was_lost:
            text = f"{name} had lost {delivery.served_model}; it was delivered again"
        gap = f"; it replaced another one in {delivered.gap_seconds:.3f} s" if delivered.gap_seconds else ""
        self._record(
            claimed,
            text + (f" (check: {delivered.check.verdict})" if delivered.check else "") + gap,
            state=DeliveryState.DELIVERED,
            error=None,
            tries=0,
            location=targets.location_of(_adapter_delivery(claimed), delivered),
            served_check=_dumped(delivered.check),
            next_attempt_at=self._next_look(target),
            delivered_at=delivery.delivered_at or leases.expiry(0),
        )

    def _record_withdrawn(self, claimed: ClaimedDelivery) -> None:
        text = f"Withdrawn from {claimed.target.name}: {claimed.delivery.served_model}"
        self._record(claimed, text, state=DeliveryState.WITHDRAWN, error=None, next_attempt_at=None, location=None)

    def _record_failure(self, claimed: ClaimedDelivery, error: DeliveryError) -> None:
        """Schedule the next attempt, or end the delivery. What is delivered or to be withdrawn has no limit."""
        delivery, jitter = claimed.delivery, random.random()
        seconds: float | None
        match delivery.state:
            case DeliveryState.WITHDRAWING:
                seconds = states.withdrawal_delay_seconds(delivery.tries, jitter)
            case DeliveryState.DELIVERED:
                seconds = self.settings.delivery_recheck_seconds
            case _:
                seconds = states.retry_delay_seconds(delivery.tries, jitter)
        columns: dict[str, Any] = {"error": str(error)[:MAX_ERROR_CHARACTERS]}
        if error.location is not None:
            columns["location"] = targets.location_of(_adapter_delivery(claimed), Delivered(error.location))
        if type(error) in UNCOUNTED_SECONDS:
            seconds, columns["tries"] = UNCOUNTED_SECONDS[type(error)], delivery.tries - 1
        if isinstance(error, DeliveryRefused):
            seconds = None
            columns["served_check"] = _dumped(error.check)
        if seconds is None:
            columns |= {"state": DeliveryState.FAILED, "next_attempt_at": None}
        else:
            columns["next_attempt_at"] = leases.expiry(seconds)
        then = "it is not tried again" if seconds is None else f"it is tried again in {seconds:.0f} s"
        is_news = seconds is None or delivery.error != columns["error"]
        text = f"{claimed.target.name}: {delivery.served_model} was not {_verb(delivery.state)}: {error}; {then}"
        self._record(claimed, text if is_news else None, "error" if seconds is None else "warn", **columns)

    def _record(self, claimed: ClaimedDelivery, message: str | None, level: str = "info", **columns: Any) -> None:
        """Raises FencedError."""

        keeper = self._leases[claimed.delivery.id]

        def write(session: Session) -> None:
            is_recorded = deliveries.record(session, claimed, keeper.lease, **columns)
            if columns.get("state") == DeliveryState.DELIVERED:  # there, also if it is to be withdrawn by now
                deliveries.end_replaced(session, claimed)
            if not is_recorded:
                log.info("delivery not recorded: it has changed since the claim", delivery=claimed.delivery.id)
            elif message is not None:
                data = {"delivery": claimed.delivery.id, "target": claimed.target.name}
                deliveries.add_event(session, claimed.job.id, message, level, data)

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


def _adapter_delivery(claimed: ClaimedDelivery) -> AdapterDelivery:
    delivery, reference = claimed.delivery, claimed.reference
    return AdapterDelivery(
        target_id=claimed.target.id,
        target_name=claimed.target.name,
        model=delivery.model,
        is_result=delivery.model == claimed.job.fine_tuned_model,
        served_model=delivery.served_model,
        base_model=claimed.job.base_model,
        manifest=claimed.checkpoint.manifest,
        location=delivery.location or {},
        reference=ServedReference.model_validate(reference) if reference else None,
        job_id=claimed.job.id,
    )


def _dumped(check: ServedCheck | None) -> dict[str, Any] | None:
    return check.model_dump(mode="json") if check else None


def _verb(state: str) -> str:
    return {DeliveryState.WITHDRAWING: "withdrawn", DeliveryState.DELIVERED: "found"}.get(
        DeliveryState(state), "delivered"
    )
