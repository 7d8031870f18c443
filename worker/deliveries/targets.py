"""Delivery targets of every kind: what they do and get, the files of an adapter for one of them, and where an adapter
is at its target.

The stored location has the served name beside what the target's kind reports, and the places before the target was
changed under `earlier`. A withdrawal visits all of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from app.db.tables import File
from app.domain.deliveries.served_check import ServedCheck, ServedReference
from app.storage import Storage
from app.system.artifact_directory import ADAPTER_CONFIG, MANIFEST, SEAL, read_manifest, write_manifest
from worker.deliveries.outbound import trusted_connections
from worker.jobs import stored_files

EARLIER, SERVED_MODEL = "earlier", "served_model"
OF_A_VERSION = frozenset({"version", "revision", "keys", "files"})  # they differ also between versions at one place


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


def location_of(delivery: AdapterDelivery, delivered: Delivered) -> dict[str, Any]:
    """What is stored after a delivery."""
    current = delivered.location | {SERVED_MODEL: delivery.served_model}
    before = [place.location for place in places(delivery) if place.location]
    earlier = [location for location in before if not _is_same_place(location, current)]
    return current | ({EARLIER: earlier} if earlier else {})


def places(delivery: AdapterDelivery) -> list[AdapterDelivery]:
    """The delivery as it is at each place."""
    location = dict(delivery.location)
    earlier = location.pop(EARLIER, [])
    found = [_at(delivery, location), *(_at(delivery, each) for each in earlier)]
    if found[0].served_model != delivery.served_model:  # attempts under the current name may have left something
        found.insert(0, replace(delivery, location={}))
    return found


def withdraw_everywhere(target: Target, delivery: AdapterDelivery) -> None:
    """Withdraw from every place, also after one has failed. Raises DeliveryError, preferably one to try again."""
    problems: list[DeliveryError] = []
    for place in places(delivery):
        try:
            target.withdraw(place)
        except DeliveryError as error:
            problems.append(error)
    if problems:
        raise min(problems, key=lambda each: isinstance(each, DeliveryRefused))


def with_known_paths(
    delivery: AdapterDelivery, locations: Sequence[tuple[str, Mapping[str, Any], bool]]
) -> AdapterDelivery:
    """The delivery with the paths of (target id, location, is current), from which engines have its served name."""
    known = [(target_id, path) for target_id, location, _ in locations for path in _paths(location)]
    own = frozenset(path for target_id, path in known if target_id == delivery.target_id)
    current = [_at(delivery, location).location for _, location, is_current in locations if is_current]
    previous = [location for location in current if location[SERVED_MODEL] == delivery.served_model]
    return replace(
        delivery,
        own_paths=own,
        paths_of_others=frozenset(path for _, path in known) - own,
        previous_location=previous[-1] if previous else {},
    )


def _at(delivery: AdapterDelivery, location: Mapping[str, Any]) -> AdapterDelivery:
    """Locations of earlier releases have no served name."""
    if not location:
        return replace(delivery, location={})
    name = location.get(SERVED_MODEL, delivery.served_model)
    return replace(delivery, served_model=name, location={**location, SERVED_MODEL: name})


def _is_same_place(before: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Locations of earlier releases lack some entries."""
    return all(before.get(key, value) == value for key, value in current.items() if key not in OF_A_VERSION)


def _paths(location: Mapping[str, Any]) -> Iterator[str]:
    for place in (location, *location.get(EARLIER, [])):
        yield from place.get("paths", {}).values()
        if "path" in place:
            yield place["path"]


def fetch_adapter(storage: Storage, files: Sequence[File], directory: Path) -> None:
    """Copy the files into a new directory. Raises DeliveryError for a file that is missing or damaged."""
    directory.mkdir(parents=True)
    for file in files:
        try:
            with trusted_connections():
                sha256 = stored_files.fetch(storage, file.storage_key, directory / Path(file.filename).name)
        except OSError as error:
            reason = error.strerror or "it is missing"
            raise DeliveryError(
                f"The file {file.filename} of the adapter cannot be copied from storage to the sender: {reason}"
            ) from error
        if sha256 != file.sha256:
            raise DeliveryError(f"The file {file.filename} of the adapter is damaged in storage; its SHA-256 differs")


def address_adapter(directory: Path, model: str, base_name: str, **entries: str) -> str:
    """Set `base_model_name_or_path`, and the manifest accordingly, which then also names the model and has `entries`.

    Returns the manifest's SHA-256: the version.
    """
    path = directory / ADAPTER_CONFIG
    config = json.loads(path.read_bytes())
    if config.get("base_model_name_or_path") != base_name:
        text = json.dumps(config | {"base_model_name_or_path": base_name}, indent=2, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")
    manifest = {key: value for key, value in read_manifest(directory).items() if key not in ("files", SEAL)}
    (directory / MANIFEST).unlink()
    return write_manifest(directory, manifest | {"fine_tuned_model": model} | entries)
