"""What the trainer says: typed records, one JSON line each, through one narrow thing. It does not know who reads them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO

from app.domain.events import Record

Emit = Callable[[Record], None]


class RecordStream:
    """Writes records to a binary file, whole lines only, from any thread."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> None:
        line = record.model_dump_json().encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()


def claim_standard_output() -> RecordStream:
    """Keep descriptor 1 for records alone: whatever a library prints from now on lands on standard error."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    return RecordStream(os.fdopen(private, "wb"))
