"""The SHA-256 of what is still arriving, rolling on from part to part, so that completing need not read it all again.

It is known to this process alone, and only for parts that come one after the other: who does not find it here reads the
bytes. What is kept is always true, so nothing has to be taken back: these parts in this order have that digest.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

    Digest = _Hash

MAX_UPLOADS = 1000  # some hundred bytes each, and the ids of their parts


@dataclass(frozen=True)
class RollingDigest:
    """The digest of parts in the order they came, and how many bytes they have together."""

    part_ids: tuple[str, ...] = ()
    size_bytes: int = 0
    digest: Digest = field(default_factory=hashlib.sha256)

    def extend(self, part_id: str, size_bytes: int, digest: Digest) -> RollingDigest:
        return RollingDigest((*self.part_ids, part_id), self.size_bytes + size_bytes, digest)


def part_digests(rolling: RollingDigest | None) -> list[Digest]:
    """What a part goes through: its own digest, and that of everything up to its end; of a first part they are one."""
    own = hashlib.sha256()
    return [own, rolling.digest.copy()] if rolling is not None and rolling.part_ids else [own]


def piece_digests(rolling: RollingDigest | None) -> list[Digest]:
    """A piece of a stream has no use for a digest of its own."""
    return [hashlib.sha256() if rolling is None else rolling.digest.copy()]


class RollingDigestCache:
    """Of the uploads that this process has seen last; built once per process."""

    def __init__(self, max_uploads: int = MAX_UPLOADS) -> None:
        self._max_uploads = max_uploads
        self._rolling: OrderedDict[str, RollingDigest] = OrderedDict()
        self._lock = threading.Lock()

    def get_at(self, upload_id: str, size_bytes: int) -> RollingDigest | None:
        """What to carry on from where so many bytes have arrived; for parts that are sent at once soon nothing."""
        if size_bytes == 0:
            return RollingDigest()
        with self._lock:
            rolling = self._rolling.get(upload_id)
        return rolling if rolling is not None and rolling.size_bytes == size_bytes else None

    def store(self, upload_id: str, rolling: RollingDigest) -> None:
        with self._lock:
            self._rolling[upload_id] = rolling
            self._rolling.move_to_end(upload_id)
            while len(self._rolling) > self._max_uploads:
                self._rolling.popitem(last=False)

    def matching_prefix(self, upload_id: str, part_ids: Sequence[str]) -> RollingDigest:
        """What is known of the beginning of these parts in this order: all of them at best, nothing at worst."""
        with self._lock:
            rolling = self._rolling.get(upload_id, RollingDigest())
        return rolling if tuple(part_ids[: len(rolling.part_ids)]) == rolling.part_ids else RollingDigest()

    def remove(self, upload_id: str) -> None:
        with self._lock:
            self._rolling.pop(upload_id, None)
