"""How many compiled matrix products oneDNN keeps: those of two rows.

It keeps the code it made for a product of some shape, 1,024 times. Every row is of a new length, so most are not asked
for again: nearly 1 MB each, 0.8 ms to make. A row of one run needs about 60; with fewer than a row needs each layer
would make them anew. Of several runs in one row each has products of its own. torch keeps as many again above it, and
what it keeps oneDNN cannot let go: of 600 shapes of one product 304 MB stayed with 1,024 there, 165 MB with 64.
"""

from __future__ import annotations

import os

CAPACITY, CAPACITY_OF_TORCH = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
OF_ONE_RUN = 128
OF_SEVERAL = 256


def limit_primitive_cache(runs: int) -> None:
    """Before the first product: both are read once. An operator's own setting stays."""
    for name in (CAPACITY, CAPACITY_OF_TORCH):
        os.environ.setdefault(name, str(OF_ONE_RUN if runs == 1 else OF_SEVERAL))
