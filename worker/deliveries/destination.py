"""What every kind of delivery target does, and what it gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from app.domain.deliveries.served_check import ServedCheck, ServedReference


class DeliveryError(Exception):
    """An attempt failed; it is retried. The message says what was seen and what to do."""

    location: dict[str, Any] | None = None  # what the target has received, if no later attempt can find it


class DeliveryRefused(DeliveryError):
    """An attempt failed for a reason that no retry changes."""

    def __init__(self, message: str, check: ServedCheck | None = None) -> None:
        super().__init__(message)
        self.check = check


class CredentialsLost(DeliveryError):
    """The target's credentials cannot be decrypted; the attempt does not count."""


class EvaluationPending(DeliveryError):
    """The evaluation that decides on the delivery has not ended; the attempt does not count."""


@dataclass(frozen=True)
class AdapterDelivery:
    """An adapter for a target."""

    target_id: str
    target_name: str
    model: str  # the `ft:` name
    is_result: bool  # of its job, and not an earlier checkpoint
    served_model: str
    base_model: str  # its registered name
    manifest: Mapping[str, Any]
    location: Mapping[str, Any]  # what the target has of it already
    reference: ServedReference | None
    job_id: str
    # From where engines have loaded the served name, for this target and for others; known to a delivery only.
    own_paths: Collection[str] = ()
    paths_of_others: Collection[str] = ()
    previous_location: Mapping[str, Any] = field(
        default_factory=dict
    )  # of the delivery that has the served name until now


@dataclass(frozen=True)
class Delivered:
    location: dict[str, Any]
    check: ServedCheck | None = None
    gap_seconds: float = 0.0  # in which a served name had no adapter on an engine, because it was replaced


class Target(Protocol):
    can_forget: bool
    """Whether what was delivered must be looked for from time to time."""

    def deliver(self, delivery: AdapterDelivery, adapter: Path) -> Delivered:
        """Bring the files in the directory `adapter`, which may be changed. Repeatable. Raises DeliveryError."""

    def has(self, delivery: AdapterDelivery) -> bool:
        """Whether the target still has the adapter. Raises DeliveryError."""

    def withdraw(self, delivery: AdapterDelivery) -> None:
        """Remove the adapter from the target; no error if it has none. Repeatable. Raises DeliveryError."""
