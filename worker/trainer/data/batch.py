"""Tokenized dataset -> documents end to end -> packed batches, one forward each. No padding anywhere.

    dataset   | doc 0 ......... | doc 1 .. | doc 2 ...... |          every token of the file, once
    batch     | doc 7 .... | doc 1 .. | doc 4 ....... |              complete documents, flattened
    position   0 1 2 3 4    0 1 2      0 1 2 3 4 5                   restarts with each document
    target       ^ ^ ^        ^            ^ ^ ^                     the token *before* a label predicts it

A loss of preferences is a function of sums over sequences: the targets of an answer, whose document has a role. All
documents of such an example stay in one batch. Otherwise each document may be in any batch.

Letters: T tokens of a batch, N targets of a batch (its labelled tokens), S sequences of a batch.
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

from app.domain.datasets.documents import Document
from app.domain.datasets.jsonl import Finding
from app.domain.datasets.render import Renderer
from app.domain.datasets.report import no_trainable_tokens_message
from app.domain.jobs.spec import DataParameters
from app.domain.jobs.states import Reason
from app.domain.planning.packing import SequenceLengths, pack
from worker.trainer.runtime.failures import Failure
from worker.trainer.runtime.records import Keepalive

# ruff: noqa: N815  shapes stand in names


class TokenizedDataset:
    """The documents of a file that have a label, end to end; five bytes a token.

    With `trains_prompts`, the tokens before a preferred answer are targets, too, in a sequence of their own.
    """

    def __init__(self, *, trains_prompts: bool = False) -> None:
        self.trains_prompts = trains_prompts
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
    def sequences_per_example(self) -> int:
        """Return the number of sequences that the loss sums over; 0 if it has one term for each token.

        All examples of a file have as many as the first: one answer with a role, or two.
        """
        roles = {self.role(document) for document in self.documents(0)} - {0} if len(self) else set()
        return len(roles) + self.trains_prompts if roles else 0

    def add(self, line: int, documents: Iterable[Document]) -> None:
        """Append the content of one line: one example, or for plain text one example for each piece.

        Documents without a label are omitted, because they contribute nothing to the loss.
        """
        kept = [document for document in documents if document.labelled_count]
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
        """Return 1 for a preferred or desirable answer, -1 for a rejected or undesirable one, 0 for neither."""
        return self._roles[document]

    def length(self, document: int) -> int:
        return self._document_starts[document + 1] - self._document_starts[document]

    def tokens_of(self, example: int) -> int:
        first, last = self._example_starts[example], self._example_starts[example + 1]
        return self._document_starts[last] - self._document_starts[first]

    def lengths(self) -> SequenceLengths:
        """Return the lengths of what must stay in one batch: a document, or all documents of an example with roles."""
        lengths = SequenceLengths()
        for example in range(len(self)):
            documents = self.documents(example)
            lengths.add([self.length(document) for document in documents], is_pair=self.role(documents[0]) != 0)
        return lengths

    def tokens_and_labels(self, document: int) -> tuple[array[int], bytearray]:
        """Return the tokens of one document, and for each token 1 if it is a target, else 0."""
        start, end = self._document_starts[document], self._document_starts[document + 1]
        return self._tokens[start:end], self._labelled[start:end]

    def targets(self, document: int) -> list[int]:
        """Return the positions of a document's targets: its labels, and before a preferred answer all tokens if prompts
        are trained."""
        labels = self.tokens_and_labels(document)[1]
        if self.trains_prompts and self.role(document) > 0:
            return list(range(1, len(labels)))
        return [index for index, is_labelled in enumerate(labels) if is_labelled]


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
    dataset = TokenizedDataset(trains_prompts=parameters.method == "orpo")  # TRL and the authors' code do
    param = failure_reason.removeprefix("invalid_")  # training_file or validation_file
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
class Sequences:
    """The assignment of a batch's targets to sequences. An example has the same sequences in the same order:

    its one answer; or of a pair the preferred answer, the rejected one and, if prompts are trained, its prompt.
    """

    sequence_N: torch.Tensor  # int64: index of the sequence within the batch
    tokens_S: torch.Tensor  # float64: number of targets
    roles_S: torch.Tensor  # float64: 1 preferred or desirable, -1 rejected or undesirable, 0 a prompt


@dataclass(frozen=True)
class PackedBatch:
    """The input of one forward: complete documents, one after the other."""

    tokens_T: torch.Tensor  # int64: token ids
    positions_T: torch.Tensor  # int64: positions within the document
    document_lengths: tuple[int, ...]  # their sum is T
    logit_positions_N: torch.Tensor  # int64: index in the batch of the token before each target
    targets_N: torch.Tensor  # int64: id of each target
    sequences: Sequences | None = None  # only of documents with a role

    def to(self, device: torch.device) -> PackedBatch:
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> PackedBatch:
        """Return the batch in pinned memory, from which a copy to the GPU does not wait for the computation."""
        return self.map_tensors(torch.Tensor.pin_memory)

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        """Return the batch with the results of `function` as its tensors."""
        tensors: dict[str, Any] = {
            name: function(each) for name, each in vars(self).items() if isinstance(each, torch.Tensor)
        }
        sequences = Sequences(*map(function, vars(self.sequences).values())) if self.sequences else None
        return replace(self, **tensors, sequences=sequences)


def pack_batches(
    dataset: TokenizedDataset, documents: Sequence[int], row_tokens: int, *, packing: bool = True
) -> Iterator[PackedBatch]:
    """Yield batches of complete documents with up to `row_tokens` tokens each.

    A longer document, or example with roles, is a batch by itself. Without `packing` each is a batch by itself.
    """
    per_example = dataset.sequences_per_example
    groups = [[document] for document in documents]
    if per_example:
        groups = [list(group) for _, group in groupby(documents, dataset.example_of)]
    lengths = ((sum(map(dataset.length, group)), packing) for group in groups)
    return (_pack(dataset, groups[batch], per_example) for batch in pack(lengths, row_tokens))


def _pack(dataset: TokenizedDataset, groups: Sequence[Sequence[int]], per_example: int) -> PackedBatch:
    """Concatenate the documents of the groups, each with `per_example` sequences."""
    tokens, positions, logit_positions, lengths = array("i"), array("i"), array("i"), []
    for document in (document for group in groups for document in group):
        document_tokens = dataset.tokens_and_labels(document)[0]
        start = len(tokens)
        tokens.extend(document_tokens)
        positions.extend(range(len(document_tokens)))
        logit_positions.extend(start + index - 1 for index in dataset.targets(document))
        lengths.append(len(document_tokens))
    tokens_T, positions_T, logit_positions_N = map(_int64, (tokens, positions, logit_positions))
    return PackedBatch(
        tokens_T=tokens_T,
        positions_T=positions_T,
        document_lengths=tuple(lengths),
        logit_positions_N=logit_positions_N,
        targets_N=tokens_T[logit_positions_N + 1],
        sequences=_sequences(dataset, groups, per_example) if per_example else None,
    )


def _sequences(dataset: TokenizedDataset, groups: Sequence[Sequence[int]], per_example: int) -> Sequences:
    """Return the sequence of every target, in the order in which `_pack` concatenates the documents."""
    sequences, roles = array("i"), [0.0] * (per_example * len(groups))
    for number, group in enumerate(groups):
        first = number * per_example
        for document in group:
            role, labels = dataset.role(document), dataset.tokens_and_labels(document)[1]
            answer, prompt = first + (role < 0 and per_example > 1), first + per_example - 1
            roles[answer] = role
            sequences.extend(answer if labels[index] else prompt for index in dataset.targets(document))
    sequence_N = _int64(sequences)
    tokens_S = torch.bincount(sequence_N, minlength=len(roles)).double()
    return Sequences(sequence_N, tokens_S, torch.tensor(roles, dtype=torch.float64))


def _int64(numbers: array[int]) -> torch.Tensor:
    return torch.frombuffer(numbers, dtype=torch.int32).long()


class BatchesAhead:
    """Batches made ahead: while a step computes, a thread makes and pins the batches of the next one.

    `make(step, row_tokens)` returns the batches of a step; the thread ends with the process. They follow from the step
    and the length of a batch alone, so a result never depends on what was made ahead: after a resume, a repetition or
    another length they are made anew.
    """

    def __init__(self, make: Callable[[int, int], Iterable[PackedBatch]], *, pin: bool) -> None:
        self._make, self._pin = make, pin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: dict[tuple[int, int], Future[list[PackedBatch]]] = {}  # by step and row_tokens; at most one

    def of_step(self, step: int, row_tokens: int, last_step: int) -> list[PackedBatch]:
        """Return the batches of a step, and start to make those of the next one unless the step is the last."""
        made = self._next.get((step, row_tokens))
        batches = made.result() if made else self._made(step, row_tokens)
        self._next.clear()
        if (following := step + 1) < last_step:
            self._next[following, row_tokens] = self._thread.submit(self._made, following, row_tokens)
        return batches

    def _made(self, step: int, row_tokens: int) -> list[PackedBatch]:
        batches = list(self._make(step, row_tokens))
        return [batch.pinned() for batch in batches] if self._pin else batches
