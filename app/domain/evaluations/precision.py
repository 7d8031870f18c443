"""The precision in which a base model answers, as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def precision_text(quantization: Mapping[str, Any] | None, compute_dtype: str | None = None) -> str:
    """`4 bits (nf4, as in the training)` or `16 bits`, with the dtype of the computation if it is known."""
    computed = f", computed in {compute_dtype}" if compute_dtype else ""
    if quantization is None:
        return f"16 bits{computed}"
    kind = f"{quantization['type']}, " if quantization.get("type") else ""
    return f"{quantization['bits']} bits ({kind}as in the training){computed}"
