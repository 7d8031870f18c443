"""Tokenized dataset -> documents end to end -> packed batches, one forward each. No padding anywhere.

    dataset   | doc 0 ......... | doc 1 .. | doc 2 ...... |          every token of the file, once
    batch     | doc 7 .... | doc 1 .. | doc 4 ....... |              complete documents, flattened
    position   0 1 2 3 4    0 1 2      0 1 2 3 4 5                   restarts with each document
    target       ^ ^ ^        ^            ^ ^ ^                     the token *before* a label predicts it

With DPO both documents of a pair (the prompt with each of its two answers) are in one batch, because the margin of the
pair is a sum over both. A sequence is what must stay in one batch: a document, or both documents of a pair.

Letters: T tokens of a batch, N labelled tokens of a batch.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from app.domain.datasets.documents import Document, trainable
from app.domain.datasets.jsonl import Finding
from app.domain.datasets.render import Renderer
from app.domain.datasets.report import no_trainable_tokens_message
from app.domain.jobs.spec import DataParameters
from app.domain.jobs.states import Reason
from app.domain.planning.packing import SequenceLengths, pack
from worker.trainer.runtime.failures import Failure
from worker.trainer.runtime.records import Keepalive

# ruff: noqa: N815  shapes stand in names

Key = tuple[int, int]  # the step, and the maximum tokens of a batch


class TokenizedDataset:
    """The documents of a file that have a label, end to end; five bytes a token."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._labelled = bytearray()
        self._roles = array("b")  # of each document
        self._document_starts = array("q", [0])  # document d is the tokens from start d to start d + 1
        self._example_starts = array("q", [0])  # example e is the documents from start e to start e + 1
        self.lines = array("q")  # of each example, in the file

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.lines)

    @property
    def tokens(self) -> int:
        return len(self._tokens)

    @property
    def labelled_tokens(self) -> int:
        return self._labelled.count(1)

    @property
    def has_pairs(self) -> bool:
        return len(self) > 0 and self._roles[0] != 0  # a file has only pairs, or none

    def add(self, line: int, documents: Iterable[Document]) -> None:
        """Append the content of one line: one example, or for plain text one example for each piece.

        Documents without a label are omitted, because they contribute nothing to the loss. A pair is omitted if one of
        its documents is.
        """
        documents = list(documents)
        kept = trainable(documents, is_pair=any(document.role for document in documents))
        if kept and not kept[0].is_text:
            self._append(line, kept)
        else:
            for piece in kept:
                self._append(line, [piece])

    def _append(self, line: int, documents: Iterable[Document]) -> None:
        for document in documents:
            self._tokens.extend(document.tokens)
            self._labelled.extend(document.labelled)
            self._roles.append(document.role)
            self._document_starts.append(len(self._tokens))
        self._example_starts.append(len(self._document_starts) - 1)
        self.lines.append(line)

    def documents(self, example: int) -> range:
        """Return the numbers of an example's documents."""
        return range(self._example_starts[example], self._example_starts[example + 1])

    def documents_of(self, examples: Iterable[int]) -> list[int]:
        return [document for example in examples for document in self.documents(example)]

    def example_of(self, document: int) -> int:
        return bisect_right(self._example_starts, document) - 1

    def role(self, document: int) -> int:
        """Return 1 for a pair's preferred answer, -1 for its other answer, 0 for a document outside of a pair."""
        return self._roles[document]

    def length(self, document: int) -> int:
        return self._document_starts[document + 1] - self._document_starts[document]

    def tokens_of(self, example: int) -> int:
        first, last = self._example_starts[example], self._example_starts[example + 1]
        return self._document_starts[last] - self._document_starts[first]

    def lengths(self) -> SequenceLengths:
        """Return the lengths of the sequences: documents, or both documents of a pair."""
        lengths = SequenceLengths()
        for example in range(len(self)):
            documents = self.documents(example)
            lengths.add([self.length(document) for document in documents], is_pair=self.role(documents[0]) != 0)
        return lengths

    def tokens_and_labels(self, document: int) -> tuple[array[int], bytearray]:
        """Return the tokens of one document, and for each token 1 if it is a target, else 0."""
        start, end = self._document_starts[document], self._document_starts[document + 1]
        return self._tokens[start:end], self._labelled[start:end]


def read_dataset(
    renderer: Renderer,
    path: Path,
    parameters: DataParameters,
    failure_reason: Reason,
    keepalive: Keepalive,
) -> TokenizedDataset:
    """Render a JSONL file with the base model's own chat template; no document exceeds the context length.

    Raises Failure(failure_reason) for an invalid line, for a conversation that the template refuses, and for a file
    without a labelled token.
    """
    dataset, param = TokenizedDataset(), failure_reason.removeprefix("invalid_")  # training_file or validation_file
    step = f"reading the {param.replace('_', ' ')}"
    with path.open("rb") as file:
        longest = max(map(len, file), default=0)  # the service has checked them by its own setting
        file.seek(0)
        for line in renderer.lines(longest, parameters, file, lambda: keepalive(step)):
            if isinstance(line, Finding):
                raise Failure(failure_reason, f"{line}.", param)
            dataset.add(*line)
    if not len(dataset):
        text = no_trainable_tokens_message(parameters.method, parameters.context_length)
        raise Failure(failure_reason, text, "hyperparameters.context_length")
    return dataset


@dataclass(frozen=True)
class Pairs:
    """The assignment of a batch's targets to its pairs."""

    pair_N: torch.Tensor  # int64: index of the pair within the batch
    sign_N: torch.Tensor  # float32: 1 in the preferred answer, -1 in the other
    count: int

    def to(self, device: torch.device) -> Pairs:
        return replace(
            self,
            pair_N=self.pair_N.to(device, non_blocking=True),
            sign_N=self.sign_N.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class PackedBatch:
    """The input of one forward: complete documents, one after the other."""

    tokens_T: torch.Tensor  # int64: token ids
    positions_T: torch.Tensor  # int64: positions within the document
    document_lengths: tuple[int, ...]  # their sum is T
    logit_positions_N: torch.Tensor  # int64: index in the batch of the token before each labelled token
    targets_N: torch.Tensor  # int64: id of each labelled token
    pairs: Pairs | None = None  # only with preference pairs

    def to(self, device: torch.device) -> PackedBatch:
        names = ("tokens_T", "positions_T", "logit_positions_N", "targets_N")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved, pairs=self.pairs.to(device) if self.pairs else None)


def pack_batches(
    dataset: TokenizedDataset, documents: Sequence[int], row_tokens: int, *, packing: bool = True
) -> Iterator[PackedBatch]:
    """Yield batches of complete documents with up to `row_tokens` tokens each.

    A longer sequence is a batch by itself. Without `packing` each sequence is a batch by itself.
    """
    has_pairs = dataset.has_pairs
    sequences = [[document] for document in documents]
    if has_pairs:
        sequences = [list(pair) for _, pair in groupby(documents, dataset.example_of)]
    lengths = ((sum(map(dataset.length, sequence)), packing) for sequence in sequences)
    return (_pack(dataset, sequences[batch], has_pairs=has_pairs) for batch in pack(lengths, row_tokens))


def _pack(dataset: TokenizedDataset, sequences: Sequence[Sequence[int]], *, has_pairs: bool) -> PackedBatch:
    """Concatenate the documents of the sequences."""
    tokens, positions, logit_positions, lengths = array("i"), array("i"), array("i"), []
    for document in (document for sequence in sequences for document in sequence):
        document_tokens, labels = dataset.tokens_and_labels(document)
        start = len(tokens)
        tokens.extend(document_tokens)
        positions.extend(range(len(document_tokens)))
        logit_positions.extend(start + index - 1 for index, is_labelled in enumerate(labels) if is_labelled)
        lengths.append(len(document_tokens))
    tokens_T, positions_T, logit_positions_N = map(_int64, (tokens, positions, logit_positions))
    return PackedBatch(
        tokens_T=tokens_T,
        positions_T=positions_T,
        document_lengths=tuple(lengths),
        logit_positions_N=logit_positions_N,
        targets_N=tokens_T[logit_positions_N + 1],
        pairs=_pairs(dataset, sequences) if has_pairs else None,
    )


def _pairs(dataset: TokenizedDataset, sequences: Sequence[Sequence[int]]) -> Pairs:
    """Return the pair and the sign of every target, in the order in which `_pack` concatenates the documents."""
    pairs, signs = array("i"), array("i")
    for pair, sequence in enumerate(sequences):
        for document in sequence:
            targets = dataset.tokens_and_labels(document)[1].count(1)
            pairs.extend([pair] * targets)
            signs.extend([dataset.role(document)] * targets)
    return Pairs(_int64(pairs), _int64(signs).float(), len(sequences))


def _int64(numbers: array[int]) -> torch.Tensor:
    return torch.frombuffer(numbers, dtype=torch.int32).long()


MakeBatches = Callable[[int, int], Iterable[PackedBatch]]


class BatchesAhead:
    """Batches made ahead: while a step computes, a thread makes and pins the batches of the next one.

    `make(step, row_tokens)` returns the batches of a step; the thread ends with the process. They follow from the step
    and the length of a batch alone, so a result never depends on what was made ahead: after a resume, a repetition or
    another length they are made anew.
    """

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
