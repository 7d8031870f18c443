from __future__ import annotations

import pytest

from tests.compat.short_waits import shortened


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        (b"wait=30", b"wait=0.1"),
        (b"limit=2&wait=59.5&after=x", b"limit=2&wait=0.1&after=x"),
        (b"wait=1.2704812398193175e%2B308", b"wait=0.1"),
        (b"wait=-1", b"wait=-1"),
        (b"wait=soon&await=30", b"wait=soon&await=30"),
    ],
)
def test_only_a_valid_wait_is_shortened(query: bytes, sent: bytes) -> None:
    assert shortened(query) == sent
