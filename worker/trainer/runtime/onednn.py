"""How many compiled matrix products oneDNN keeps: those of two batches.

It keeps the code it made for a product of some shape, 1,024 times. Every batch has a new length, so most are not needed
again: nearly 1 MB each, 0.8 ms to make. A batch needs about 60; with fewer than that each layer would make them anew.
torch keeps as many again above it, and what it keeps oneDNN cannot free: of 600 shapes of one product 304 MB stayed
with 1,024 there, 165 MB with 64.
"""

from __future__ import annotations

import os

CAPACITY, CAPACITY_OF_TORCH = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
PRODUCTS = 128


def limit_primitive_cache() -> None:
    """Before the first product: both are read once. An operator's own setting stays."""
    for name in (CAPACITY, CAPACITY_OF_TORCH):
        os.environ.setdefault(name, str(PRODUCTS))
