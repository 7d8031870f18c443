"""The capacity of oneDNN's cache of compiled matrix products: those of two batches.

By default it keeps the code of 1,024 shapes. Every batch has a new length, so most of them are never used again: nearly
1 MB each, 0.8 ms to compile. A batch needs about 60; with a smaller cache every layer would compile them again. torch
has a second cache above it, whose entries oneDNN cannot free: after 600 shapes of one product 304 MB stayed allocated
with a capacity of 1,024 there, 165 MB with 64.
"""

from __future__ import annotations

import os

CAPACITY_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # of oneDNN, of torch
MAX_PRODUCTS = 128


def limit_primitive_cache() -> None:
    """Set both capacities, unless an operator has. Call it before the first product: both variables are read once."""
    for name in CAPACITY_VARIABLES:
        os.environ.setdefault(name, str(MAX_PRODUCTS))
