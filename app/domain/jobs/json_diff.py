"""Two sets of values under dotted paths, side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One value of both; absent is None."""

    path: str
    left: Any
    right: Any
    null_is_unknown: bool = False

    @property
    def differs(self) -> bool:
        if self.null_is_unknown and (self.left is None or self.right is None):
            return False
        return type(self.left) is not type(self.right) or bool(self.left != self.right)


def side_by_side(left: Mapping[str, Any], right: Mapping[str, Any], told_by_a_run: Collection[str] = ()) -> list[Row]:
    """Every path of either, in the order of the left one and then of the right one.

    What only a run can tell is not known before it, which sets nothing apart.
    """
    lefts, rights = dict(flat(left)), dict(flat(right))
    paths = [*lefts, *(path for path in rights if path not in lefts)]
    rows = [Row(path, lefts.get(path), rights.get(path), path.partition(".")[0] in told_by_a_run) for path in paths]
    return [row for row in rows if not _is_empty(row)]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Objects become dotted paths; lists are values, as their order means something or they are sorted."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{path}.")
        else:
            yield path, value or None if isinstance(value, Mapping) else value


def differing(rows: Sequence[Row]) -> int:
    return sum(row.differs for row in rows)


def _is_empty(row: Row) -> bool:
    return row.left is None and row.right is None
