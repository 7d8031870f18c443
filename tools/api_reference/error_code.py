"""One thing that can go wrong, as the reference tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorCode:
    """`message` is an example of what is said; `…` stands for what differs from case to case.

    `is_final`: the answer has `x-should-retry: false`, which the official client heeds whatever the status is.
    """

    code: str
    status: int
    cause: str
    remedy: str
    message: str
    is_final: bool = False
