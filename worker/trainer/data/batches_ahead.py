"""Batches made ahead: while a step computes, a thread makes and pins the batches of the next one.

A step's batches follow from the step and the length of a batch alone, so a result never depends on what was made ahead:
after a resume, a repetition or another length they are made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from worker.trainer.data.batch import PackedBatch, Pairs

Key = tuple[int, int]  # the step, and the maximum tokens of a batch
MakeBatches = Callable[[int, int], Iterable[PackedBatch]]


class BatchesAhead:
    """`make(step, row_tokens)` returns the batches of a step; the thread ends with the process."""

    def __init__(self, make: MakeBatches, *, pin: bool) -> None:
        self._make, self._pin = make, pin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[Key, Future[list[PackedBatch]]] | None = None

    def of_step(self, step: int, row_tokens: int, last_step: int) -> list[PackedBatch]:
        """Return the batches of a step, and start to make those of the next one unless the step is the last."""
        key = (step, row_tokens)
        is_made = self._next is not None and self._next[0] == key
        batches = self._next[1].result() if is_made and self._next is not None else self._made(step, row_tokens)
        following = step + 1
        self._next = None
        if following < last_step:
            self._next = (following, row_tokens), self._thread.submit(self._made, following, row_tokens)
        return batches

    def _made(self, step: int, row_tokens: int) -> list[PackedBatch]:
        batches = list(self._make(step, row_tokens))
        return [pinned(batch) for batch in batches] if self._pin else batches


def pinned(batch: PackedBatch) -> PackedBatch:
    """Return the batch in pinned memory, from which a copy to the GPU does not wait for the computation."""
    names = ("tokens_T", "positions_T", "logit_positions_N", "targets_N")
    tensors: dict[str, Any] = {name: getattr(batch, name).pin_memory() for name in names}
    pairs: Pairs | None = batch.pairs
    if pairs is not None:
        pairs = replace(pairs, pair_N=pairs.pair_N.pin_memory(), sign_N=pairs.sign_N.pin_memory())
    return replace(batch, **tensors, pairs=pairs)
