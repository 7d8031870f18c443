"""States of a delivery, and the delays of its attempts."""

from __future__ import annotations

from enum import StrEnum

JITTER = 0.2  # each delay is up to this share longer
# After the first attempt, which is immediate: eleven attempts in three days. The first four are within ten minutes,
# because an engine that restarts is back by then.
RETRY_SECONDS = (5, 30, 120, 300, 1_800, 7_200, 18_000, 36_000, 72_000, 108_000)


class DeliveryState(StrEnum):
    """pending -> delivered | failed; any -> withdrawing -> withdrawn. What a target loses is delivered again."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    WITHDRAWING = "withdrawing"  # its model was deleted, or a client withdrew it; the target still has it
    WITHDRAWN = "withdrawn"


DUE_STATES = frozenset({DeliveryState.PENDING, DeliveryState.WITHDRAWING})


def retry_delay_seconds(attempts: int, jitter: float) -> float | None:
    """The delay after this many attempts; None after the last one. `jitter` is a random number from 0 to 1."""
    if attempts > len(RETRY_SECONDS):
        return None
    return RETRY_SECONDS[attempts - 1] * (1 + JITTER * jitter)


def withdrawal_delay_seconds(attempts: int, jitter: float) -> float:
    """The same delays, the last one without a limit: nothing deleted stays at a target that becomes reachable again."""
    return retry_delay_seconds(min(attempts, len(RETRY_SECONDS)), jitter) or RETRY_SECONDS[-1]
