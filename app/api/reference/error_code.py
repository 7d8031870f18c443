"""One thing that can go wrong, as the reference tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorCode:
    """`message` is an example of what is said; `…` stands for what differs from case to case."""

    code: str
    status: int
    cause: str
    remedy: str
    message: str
