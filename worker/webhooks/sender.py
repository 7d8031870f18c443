"""`python -m worker.webhooks`: sends what the outbox holds. The one process of ours that calls strangers.

Its own process, so that it alone needs a network with a way out, and that nobody who takes back lost jobs waits for a
slow web server. Any number may run. Claim (a transaction), send (none), record (a transaction, guarded by the attempt).
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.webhooks import deliveries, endpoints
from app.db.webhooks.deliveries import ClaimedDelivery, DeliveryOutcome
from app.domain import webhooks as rules
from app.log import configure_logging, get_logger
from app.settings import load_settings
from worker.health import beat
from worker.jobs.lease import DATABASE_AWAY
from worker.node.resources import Resources, open_resources
from worker.webhooks.webhook_http import Answer, Limits, Resolve, post, resolve

SENDERS = 32
PER_ENDPOINT = 4  # at once and per process; one that has failed gets one at a time
LEASE_MARGIN_SECONDS = 60.0  # on top of a try's time: resolving a name may hang, PostgreSQL may be away
GONE = 410
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
USER_AGENT = "Tunery-Webhooks/1"

log = get_logger(__name__)


class Sender:
    def __init__(self, resources: Resources, resolve: Resolve = resolve) -> None:
        self.resources = resources
        self.settings = resources.settings
        self._resolve = resolve
        self._in_hand: Counter[str] = Counter()  # endpoint -> how many of its deliveries are being made here
        self._failing: set[str] = set()
        self._lock = threading.Lock()
        self._freed = threading.Event()

    def run(self) -> None:
        """Until `resources.stop` is set; what is in hand then is brought to its end."""
        with ThreadPoolExecutor(SENDERS, thread_name_prefix="webhook") as pool:
            while not self.resources.stop.is_set():
                try:
                    beat(self.settings, "webhooks")
                    self.round(pool)
                except DATABASE_AWAY as error:
                    log.warning("database away", error=str(error).split("\n", 1)[0])
                except Exception:
                    log.exception("round failed")
                self._wait()

    def round(self, pool: ThreadPoolExecutor) -> int:
        """Hand out what is due while anybody is free; how many."""
        handed_out = 0
        while claimed := self._claim():
            for delivery in claimed:
                pool.submit(self._see_to, delivery)
            handed_out += len(claimed)
        return handed_out

    def deliver(self, claimed: ClaimedDelivery) -> None:
        """Send and record."""
        answer = self._send(claimed)
        outcome = self._outcome(claimed, answer)
        with transaction(self.resources.sessions) as session:
            if not endpoints.lock_against_deletion(session, claimed.endpoint_id) or not deliveries.record_outcome(
                session, claimed, outcome
            ):
                log.info("delivery is somebody else's by now", delivery=claimed.id, attempt=claimed.attempt)
                return
            if not claimed.is_test:
                self._note(session, claimed, answer, outcome)

    def _claim(self) -> list[ClaimedDelivery]:
        with self._lock:
            free = SENDERS - self._in_hand.total()
            busy = [each for each, n in self._in_hand.items() if n >= (1 if each in self._failing else PER_ENDPOINT)]
        if free <= 0 or self.resources.stop.is_set():
            return []
        lease_seconds = self.settings.webhook_timeout_seconds + LEASE_MARGIN_SECONDS
        with transaction(self.resources.sessions) as session:
            claimed = deliveries.claim(session, free, lease_seconds, busy)
        with self._lock:
            for each in claimed:
                self._in_hand[each.endpoint_id] += 1
                (self._failing.add if each.failing_since else self._failing.discard)(each.endpoint_id)
        return claimed

    def _see_to(self, claimed: ClaimedDelivery) -> None:
        try:
            self.deliver(claimed)
        except DATABASE_AWAY as error:  # its lease runs out, and it is sent again under the same id
            log.warning("delivery not recorded", delivery=claimed.id, error=str(error).split("\n", 1)[0])
        except Exception:
            log.exception("delivery failed", delivery=claimed.id)
        finally:
            with self._lock:
                self._in_hand[claimed.endpoint_id] -= 1
                self._in_hand += Counter()  # forget zeros
            self._freed.set()

    def _wait(self) -> None:
        """Until somebody is free again, at most until it is time to look for what has come."""
        self._freed.wait(self.settings.webhook_poll_seconds)
        self._freed.clear()

    def _send(self, claimed: ClaimedDelivery) -> Answer:
        content = rules.body(claimed.event_id, claimed.event_type, int(claimed.created_at.timestamp()), claimed.data)
        signed = rules.headers(claimed.event_id, int(time.time()), content, claimed.signing_secrets)
        fixed = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": USER_AGENT,
            "connection": "close",
        }
        settings = self.settings
        limits = Limits(
            settings.webhook_connect_seconds,
            settings.webhook_timeout_seconds,
            settings.webhook_allow_http,
            settings.webhook_networks,
        )
        return post(claimed.url, fixed | signed, content, limits, self._resolve)

    def _outcome(self, claimed: ClaimedDelivery, answer: Answer) -> DeliveryOutcome:
        is_delivered = answer.status is not None and 200 <= answer.status < 300
        retry_after = rules.parse_retry_after(answer.retry_after, datetime.now(UTC))
        retry_seconds = rules.retry_delay_seconds(claimed.tries, random.random(), retry_after)
        if claimed.is_test:
            retry_seconds = None
        error = answer.error
        if answer.status is not None and 300 <= answer.status < 400:
            error = "a redirect, which is not followed: give the endpoint its final URL"
        beginning = None if answer.status is None else answer.content.decode(errors="replace").replace("\x00", "\ufffd")
        return DeliveryOutcome(is_delivered, answer.duration_ms, answer.status, error, beginning, retry_seconds)

    def _note(self, session: Session, claimed: ClaimedDelivery, answer: Answer, outcome: DeliveryOutcome) -> None:
        if outcome.is_delivered:
            deliveries.record_endpoint_success(session, claimed.endpoint_id)
            return
        failing_seconds = deliveries.record_endpoint_failure(session, claimed.endpoint_id)
        if answer.status == GONE:
            self._disable(session, claimed, "it answered 410 Gone")
        elif failing_seconds >= self.settings.webhook_disable_seconds:
            self._disable(session, claimed, f"every delivery has failed for {failing_seconds / 86_400:.1f} days")

    def _disable(self, session: Session, claimed: ClaimedDelivery, reason: str) -> None:
        """The project's other endpoints hear of it."""
        log.warning("webhook endpoint disabled", endpoint=claimed.endpoint_id, reason=reason)
        endpoints.disable(session, claimed.endpoint_id, reason)
        data = json.dumps({"id": claimed.endpoint_id, "reason": reason})
        endpoints.announce(session, claimed.project_id, rules.ENDPOINT_DISABLED, data)


def main() -> None:
    settings = load_settings()
    configure_logging(settings.log_json, settings.log_file)
    resources = open_resources(settings)
    # Waited for, not handled, as in reconciler.py.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    thread = threading.Thread(target=Sender(resources).run, name="webhooks")
    thread.start()
    log.info("sender of webhooks started")
    signal.sigwait(STOP_SIGNALS)
    resources.stop.set()
    thread.join()
    resources.close()
