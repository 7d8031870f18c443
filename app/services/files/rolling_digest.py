"""Rolling SHA-256 of uploads, extended part by part, so that a completion need not read all the content again.

The digests exist only in this process, and only for parts that arrive one after the other; without one, the completion
reads the content. An entry never becomes wrong: it maps a sequence of parts to the digest of their content.
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

MAX_UPLOADS = 1000  # of some hundred bytes each, plus the ids of their parts


@dataclass(frozen=True)
class RollingDigest:
    """Running SHA-256 and byte count of the contiguous prefix of an upload that has been received so far."""

    part_ids: tuple[str, ...] = ()
    size_bytes: int = 0
    digest: Digest = field(default_factory=hashlib.sha256)

    def extend(self, part_id: str, size_bytes: int, digest: Digest) -> RollingDigest:
        """The rolling digest after another part; `digest` is that of the whole prefix up to its end."""
        return RollingDigest((*self.part_ids, part_id), self.size_bytes + size_bytes, digest)


def part_digests(rolling: RollingDigest | None) -> list[Digest]:
    """The digests to update with a part: its own and that of the prefix up to its end; for a first part only one."""
    own = hashlib.sha256()
    return [own, rolling.digest.copy()] if rolling is not None and rolling.part_ids else [own]


def piece_digests(rolling: RollingDigest | None) -> list[Digest]:
    """The digest to update with a piece of streamed content: that of the prefix, as a piece needs none of its own."""
    return [hashlib.sha256() if rolling is None else rolling.digest.copy()]


class RollingDigestCache:
    """The rolling digests of the most recent uploads of this process."""

    def __init__(self, max_uploads: int = MAX_UPLOADS) -> None:
        self._max_uploads = max_uploads
        self._rolling: OrderedDict[str, RollingDigest] = OrderedDict()
        self._lock = threading.Lock()

    def get_at(self, upload_id: str, size_bytes: int) -> RollingDigest | None:
        """The rolling digest after `size_bytes`; None if it is unknown, as for parts that are sent concurrently."""
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
        """The rolling digest of the longest known prefix of these parts; it may be empty."""
        with self._lock:
            rolling = self._rolling.get(upload_id, RollingDigest())
        return rolling if tuple(part_ids[: len(rolling.part_ids)]) == rolling.part_ids else RollingDigest()

    def remove(self, upload_id: str) -> None:
        with self._lock:
            self._rolling.pop(upload_id, None)
