"""`python -m worker.webhooks`: sends the deliveries of the outbox to the endpoints of users.

It is its own process, so that the reconciler needs no outbound network access, and a slow web server never delays it.
Any number may run. Claim (a transaction), send (no transaction), record (a transaction, guarded by the lease).
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus

from sqlalchemy.orm import Session

from app.db import encryption
from app.db.encryption import LostKey, NoSecretKey
from app.db.engine import transaction
from app.db.jobs.leases import FencedError
from app.db.operations import status
from app.db.tables import WebhookEndpoint
from app.db.webhooks import deliveries, endpoints, operator
from app.db.webhooks.deliveries import ClaimedWebhook, DeliveryOutcome
from app.domain import webhooks as rules
from app.errors import BadRequest
from app.log import get_logger
from app.system.host import boottime_seconds
from app.telemetry import metrics
from worker.health import write_heartbeat
from worker.jobs.lease import LeaseKeeper, owner_name
from worker.node.resources import Resources, errors_logged
from worker.webhooks.webhook_http import PostLimits, WebhookResponse, post

SENDER_THREADS = 32
MAX_CONCURRENT_PER_ENDPOINT = 4  # per process; 1 for an endpoint whose last delivery failed
LEASE_MARGIN_SECONDS = 60.0  # in addition to the timeout: how long a delivery rests after its sender was killed
RENEW_SECONDS = 15.0
REPORT_SECONDS = 10.0
LOST_KEY_REASON = (
    "none of TUNERY_SECRET_KEYS decrypts its signing secret: rotate the secret, or let the operator add the key, and "
    "enable the endpoint again"
)
USER_AGENT = "Tunery-Webhooks/1"

log = get_logger(__name__)


class WebhookSender:
    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.settings = resources.settings
        self._owner = owner_name("webhooks")
        self._in_flight: Counter[str] = Counter()  # endpoint id -> its deliveries that this process is sending
        self._failing: set[str] = set()
        self._lock = threading.Lock()
        self._thread_freed = threading.Event()
        self._reported_at = -float("inf")
        self._is_operator_endpoint_set = False
        metrics.begin(metrics.WEBHOOK_ATTEMPTS, ["delivered", "failed"])

    def run(self) -> None:
        """Run rounds until `resources.stop` is set; deliveries in flight are then finished."""
        log.info("webhook sender started")
        with ThreadPoolExecutor(SENDER_THREADS, thread_name_prefix="webhook") as pool:
            while not self.resources.stop.is_set():
                with errors_logged("round"):
                    write_heartbeat(self.settings, "webhooks")
                    self._report_if_due()
                    if not self._is_operator_endpoint_set:
                        self._set_operator_endpoint()
                    self.round(pool)
                self._thread_freed.wait(self.settings.webhook_poll_seconds)  # or until it is time to poll again
                self._thread_freed.clear()

    def _set_operator_endpoint(self) -> None:
        """Create or delete the operator's endpoint, as the settings say; once, when the database is available."""
        url, settings, reason = self.settings.operator_webhook_url, self.settings, None
        try:
            if url is not None:
                url = rules.check_url(url, settings.webhook_allow_http, settings.webhook_networks)
        except BadRequest as error:
            reason = f"TUNERY_OPERATOR_WEBHOOK_URL: {error}"
            log.error("the operator's webhook is off", why=reason)
        with transaction(self.resources.sessions) as session:
            operator.set_endpoint(session, url)
            if reason is not None:  # `tunery status` shows it
                endpoints.disable(session, operator.ENDPOINT_ID, reason)
        self._is_operator_endpoint_set = True

    def _report_if_due(self) -> None:
        """Report for the operator's status that this sender works."""
        if time.monotonic() - self._reported_at >= REPORT_SECONDS:
            with transaction(self.resources.sessions) as session:
                status.report(session, "webhooks")
            self._reported_at = time.monotonic()

    def round(self, pool: ThreadPoolExecutor) -> int:
        """Claim due deliveries and submit them while threads are free. Returns their number."""
        submitted = 0
        while claimed := self._claim():
            for delivery in claimed:
                pool.submit(self._deliver_and_release, delivery)
            submitted += len(claimed)
        return submitted

    def deliver(self, claimed: ClaimedWebhook) -> None:
        """Send one delivery and record the outcome, unless the lease is lost by then."""
        is_key_lost = False
        with LeaseKeeper(
            self.resources, claimed.delivery, boottime_seconds(), self._lease_seconds, RENEW_SECONDS
        ) as keeper:
            try:
                response = self._send(claimed, self._signing_secrets(claimed))
            except NoSecretKey as error:
                response = WebhookResponse(0, error=f"The event cannot be signed: {error}")
                is_key_lost = True
            outcome = self._outcome(claimed, response)
            if is_key_lost and not claimed.delivery.is_test:
                outcome = replace(outcome, retry_seconds=0, is_try=False)
            metrics.WEBHOOK_ATTEMPTS.labels("delivered" if outcome.is_delivered else "failed").inc()
            metrics.WEBHOOK_SECONDS.observe(outcome.duration_ms / 1000)

            def record(session: Session) -> None:
                if not endpoints.lock_against_deletion(session, claimed.endpoint.id):
                    raise FencedError(claimed.delivery.id)
                deliveries.record_outcome(session, keeper.lease, outcome)
                if is_key_lost:  # the delivery stays pending, and is sent once the endpoint is enabled again
                    self._disable(session, claimed.endpoint, LOST_KEY_REASON)
                elif not claimed.delivery.is_test:
                    self._update_endpoint(session, claimed.endpoint, response, outcome)

            try:
                keeper.finish(record)
            except FencedError:
                log.info("delivery not recorded: its lease is lost", delivery=claimed.delivery.id)

    @property
    def _lease_seconds(self) -> float:
        return self.settings.webhook_timeout_seconds + LEASE_MARGIN_SECONDS

    def _claim(self) -> list[ClaimedWebhook]:
        with self._lock:
            free = SENDER_THREADS - self._in_flight.total()
            busy = [
                each
                for each, n in self._in_flight.items()
                if n >= (1 if each in self._failing else MAX_CONCURRENT_PER_ENDPOINT)
            ]
        if free <= 0 or self.resources.stop.is_set():
            return []
        with transaction(self.resources.sessions) as session:
            claimed = deliveries.claim(session, free, self._owner, self._lease_seconds, busy)
        with self._lock:
            for each in claimed:
                self._in_flight[each.endpoint.id] += 1
                (self._failing.add if each.endpoint.failing_since else self._failing.discard)(each.endpoint.id)
        return claimed

    def _deliver_and_release(self, claimed: ClaimedWebhook) -> None:
        try:
            self.deliver(claimed)
        except Exception:
            log.exception("delivery failed", delivery=claimed.delivery.id)
        finally:
            with self._lock:
                self._in_flight[claimed.endpoint.id] -= 1
                self._in_flight += Counter()  # drops zeros
            self._thread_freed.set()

    def _send(self, claimed: ClaimedWebhook, signing_secrets: Sequence[str]) -> WebhookResponse:
        event = claimed.delivery
        content = rules.event_body(event.event_id, event.event_type, int(event.created_at.timestamp()), event.data)
        signature_headers = rules.delivery_headers(event.event_id, int(time.time()), content, signing_secrets)
        headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": USER_AGENT,
            "connection": "close",
        }
        settings = self.settings
        limits = PostLimits(
            settings.webhook_connect_seconds,
            settings.webhook_timeout_seconds,
            settings.webhook_allow_http,
            settings.webhook_networks,
        )
        return post(claimed.endpoint.url, headers | signature_headers, content, limits)

    def _signing_secrets(self, claimed: ClaimedWebhook) -> Sequence[str]:
        """Raises NoSecretKey, LostKey."""
        if claimed.endpoint.id == operator.ENDPOINT_ID:
            return [self.settings.operator_webhook_secret or ""]
        keys = self.settings.encryption_keys
        signing = [encryption.reveal(keys, claimed.endpoint.secret)]
        with contextlib.suppress(LostKey):  # the current secret is enough
            if claimed.signs_with_previous:
                signing.append(encryption.reveal(keys, claimed.endpoint.previous_secret or ""))
        return signing

    def _outcome(self, claimed: ClaimedWebhook, response: WebhookResponse) -> DeliveryOutcome:
        is_delivered = response.status is not None and 200 <= response.status < 300
        retry_after = rules.parse_retry_after(response.retry_after, response.date, datetime.now(UTC))
        retry_seconds = rules.retry_delay_seconds(claimed.delivery.tries, random.random(), retry_after)
        if claimed.delivery.is_test:
            retry_seconds = None
        error = response.error
        if response.status is not None and 300 <= response.status < 400:
            error = "the response is a redirect, and redirects are not followed: set the endpoint to its final URL"
        prefix = (
            None if response.status is None else response.content.decode(errors="replace").replace("\x00", "\ufffd")
        )
        return DeliveryOutcome(is_delivered, response.duration_ms, response.status, error, prefix, retry_seconds)

    def _update_endpoint(
        self, session: Session, endpoint: WebhookEndpoint, response: WebhookResponse, outcome: DeliveryOutcome
    ) -> None:
        if outcome.is_delivered:
            deliveries.record_endpoint_success(session, endpoint.id)
            return
        failing_seconds = deliveries.record_endpoint_failure(session, endpoint.id)
        if response.status == HTTPStatus.GONE:
            self._disable(session, endpoint, "it responded with 410 Gone")
        elif failing_seconds >= self.settings.webhook_disable_seconds:
            self._disable(session, endpoint, f"every delivery has failed for {failing_seconds / 86_400:.1f} days")

    def _disable(self, session: Session, endpoint: WebhookEndpoint, reason: str) -> None:
        """Disable the endpoint and announce it to the project's other endpoints."""
        metrics.WEBHOOKS_DISABLED.inc()
        log.warning("webhook endpoint disabled", endpoint=endpoint.id, reason=reason)
        endpoints.disable(session, endpoint.id, reason)
        data = json.dumps({"id": endpoint.id, "reason": reason})
        if endpoint.project_id is not None:  # the operator has no other endpoint
            endpoints.announce(session, endpoint.project_id, rules.ENDPOINT_DISABLED, data)
