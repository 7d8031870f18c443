"""The differences between two JSON objects, by dotted path."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ValueDiff:
    """The value of both objects at one path; None if it is absent."""

    path: str
    left: Any
    right: Any
    null_is_unknown: bool = False

    @property
    def differs(self) -> bool:
        if self.null_is_unknown and (self.left is None or self.right is None):
            return False
        return type(self.left) is not type(self.right) or bool(self.left != self.right)


@dataclass(frozen=True)
class Differences:
    values: list[ValueDiff]

    @property
    def differences(self) -> int:
        return sum(row.differs for row in self.values)


def diff(left: Mapping[str, Any], right: Mapping[str, Any], known_after_run: Collection[str] = ()) -> Differences:
    """The rows of all paths, in the order of `left`, then of `right`.

    `known_after_run` are keys whose values exist only after a run: null in one object is not a difference there.
    """
    lefts, rights = dict(flatten(left)), dict(flatten(right))
    paths = [*lefts, *(path for path in rights if path not in lefts)]
    rows = [
        ValueDiff(path, lefts.get(path), rights.get(path), path.partition(".")[0] in known_after_run) for path in paths
    ]
    return Differences([row for row in rows if row.left is not None or row.right is not None])


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value); lists are values, because their order matters or they are sorted."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{path}.")
        else:
            yield path, value or None if isinstance(value, Mapping) else value
