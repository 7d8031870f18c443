"""Where an adapter is at its target: where it was delivered last, and where before the target was changed.

The stored location has the served name beside what the target's kind reports, and the places before under `earlier`. A
withdrawal visits all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from worker.deliveries.destination import AdapterDelivery, Delivered, DeliveryError, DeliveryRefused, Target

EARLIER, SERVED_MODEL = "earlier", "served_model"
OF_A_VERSION = frozenset({"version", "revision", "keys", "files"})  # they differ also between versions at one place


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


def withdraw(target: Target, delivery: AdapterDelivery) -> None:
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
