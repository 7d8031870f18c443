"""Limits of time and memory for the compilation of a JSON schema, kept by the kernel.

llguidance has no limit for the patterns of a schema: 16 of `.*a.*` in an `allOf` take 7 s, 20 take minutes and 2.6 GB,
in one call that nothing in this process can end. The steps of an answer have limits in the library.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from app.domain.answers.trial import MAX_SCHEMA_BYTES, MAX_SCHEMA_SECONDS

PAGES = "/proc/self/statm"


@contextmanager
def schema_limits(seconds: float = MAX_SCHEMA_SECONDS, size_bytes: int = MAX_SCHEMA_BYTES) -> Iterator[None]:
    """End this process if the block takes more CPU time (SIGPROF) or memory (SIGABRT, by Rust); see SCHEMA_SIGNALS."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open(PAGES, encoding="ascii") as file:
        used_bytes = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + size_bytes, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
