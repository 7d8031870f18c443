"""The metrics that processes count themselves. Metrics read from PostgreSQL are in worker.reconciler.service_metrics.

A counter costs about a microsecond. Labels have few values: route templates, reasons and queues, never ids of jobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import product

from prometheus_client import Counter, Gauge, Histogram

REQUEST_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 60)
ATTEMPT_SECONDS_BUCKETS = (10, 60, 300, 900, 3_600, 14_400, 43_200, 86_400, 259_200)
STORE_SECONDS_BUCKETS = (0.1, 0.5, 1, 5, 15, 60, 300, 900)
RATIO_BUCKETS = (0.25, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4)

BUILD = Gauge("tunery_build_info", "1, with the version of this process.", ["process", "version"])

# --- the API
REQUESTS = Counter("tunery_http_requests", "Ended HTTP requests.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "tunery_http_request_duration_seconds",
    "Time from the headers of a request to the last byte of its response.",
    ["method", "route"],
    buckets=REQUEST_SECONDS_BUCKETS,
)
RECEIVED_BYTES = Counter("tunery_http_received_bytes", "Bytes of request bodies.")
SENT_BYTES = Counter("tunery_http_sent_bytes", "Bytes of response bodies.")

# --- hints, which wake workers
HINTS_SENT = Counter("tunery_hints_sent", "Hints to workers.", ["queue", "outcome"])  # sent, failed
HINTS_RECEIVED = Counter("tunery_hints_received", "Hints that this worker received.", ["queue"])

# --- attempts: kind is validate, train, export, evaluate or registration
CLAIMS = Counter("tunery_claims", "Claimed jobs, exports, evaluations and registrations.", ["kind"])
LEASE_RENEWALS = Counter("tunery_lease_renewals", "Renewals of leases.", ["outcome"])  # confirmed, failed
LEASES_LOST = Counter(
    "tunery_leases_lost",
    "Leases lost by this worker. fenced: the job was cancelled, or another worker holds it.",
    ["cause"],  # fenced, database_unavailable, self_fenced
)
LEASES_REAPED = Counter(
    "tunery_leases_reaped", "Attempts of lost workers that the reconciler ended.", ["of"]
)  # job, export, evaluation, registration
WORKERS_LOST = Counter("tunery_workers_lost", "Workers whose heartbeats stopped without a shutdown.", ["queue"])
ATTEMPTS_RUNNING = Gauge("tunery_attempts_running", "Attempts that this worker runs now.", ["kind"])
ATTEMPTS_ENDED = Counter("tunery_attempts_ended", "Ended attempts by reason.", ["kind", "reason"])
ATTEMPT_SECONDS = Histogram(
    "tunery_attempt_duration_seconds", "Duration of ended attempts.", ["kind"], buckets=ATTEMPT_SECONDS_BUCKETS
)

# --- training
TRAINED_TOKENS = Counter("tunery_trained_tokens", "Tokens that trainers of this worker processed.")
TOKENS_PER_SECOND = Gauge("tunery_training_tokens_per_second", "Speed of the running trainer; 0 without one.")
TRAINED_STEPS = Counter("tunery_trained_steps", "Optimizer steps of trainers of this worker.")
PLAN_RATIO = Histogram(
    "tunery_plan_ratio",
    "Measured value of a finished training divided by the estimate of its plan.",
    ["quantity"],  # memory, time
    buckets=RATIO_BUCKETS,
)
STORE_SECONDS = Histogram(
    "tunery_store_duration_seconds",
    "Time to verify a checkpoint or snapshot and to store it.",
    ["what"],
    buckets=STORE_SECONDS_BUCKETS,
)

# --- webhooks
WEBHOOK_ATTEMPTS = Counter("tunery_webhook_attempts", "Delivery attempts of webhooks.", ["outcome"])
WEBHOOK_SECONDS = Histogram(
    "tunery_webhook_attempt_duration_seconds",
    "Duration of delivery attempts of webhooks.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30),
)
WEBHOOKS_DISABLED = Counter("tunery_webhook_endpoints_disabled", "Webhook endpoints disabled after failures.")

# --- deliveries of adapters; kind is that of the target
DELIVERY_ATTEMPTS = Counter(
    "tunery_delivery_attempts",
    "Attempts to deliver an adapter to a target, or to withdraw it.",
    ["kind", "outcome"],  # delivered, withdrawn, present, failed, refused
)
DELIVERY_SECONDS = Histogram(
    "tunery_delivery_attempt_duration_seconds",
    "Duration of these attempts.",
    ["kind"],
    buckets=(0.05, 0.25, 1, 5, 15, 60, 300, 900, 3_600),
)

# --- the reconciler
ROUNDS = Counter("tunery_reconciler_rounds", "Rounds of the reconciler.", ["outcome"])  # done, standby, failed
ROUND_SECONDS = Gauge("tunery_reconciler_round_duration_seconds", "Duration of the last round.")


def set_build(process: str) -> None:
    """Set the metric with the version, so that it names this process."""
    BUILD.labels(process, own_version()).set(1)


def begin(metric: Counter | Histogram, *values: Iterable[str]) -> None:
    """Expose every combination of these values of the labels with 0, at the start of a process.

    For Prometheus a series that appears with 1 has not increased, so that an alert would miss the first event.
    """
    for labels in product(*values):
        metric.labels(*labels)


@cache
def own_version() -> str:
    try:
        return version("tunery")
    except PackageNotFoundError:
        return "unknown"


def count_attempt(kind: str, reason: str, duration_seconds: float) -> None:
    """Count an ended attempt; call it after the commit that ends it."""
    ATTEMPTS_ENDED.labels(kind, reason).inc()
    ATTEMPT_SECONDS.labels(kind).observe(duration_seconds)
