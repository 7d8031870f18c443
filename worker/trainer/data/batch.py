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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from app.domain.datasets.jsonl import Finding
from app.domain.datasets.render import Renderer
from app.domain.datasets.report import no_trainable_tokens_message
from app.domain.datasets.stored_tokens import key_of, read_tokens
from app.domain.datasets.tokenized import TokenizedDataset as TokenizedDataset
from app.domain.jobs.spec import DataParameters, TokensFile
from app.domain.jobs.states import Reason
from app.domain.planning.packing import pack
from app.system.artifact_directory import sha256_file
from worker.trainer.runtime.failures import Failure
from worker.trainer.runtime.records import Keepalive

# ruff: noqa: N815  shapes stand in names


def read_dataset(
    renderer: Renderer,
    path: Path,
    parameters: DataParameters,
    failure_reason: Reason,
    keepalive: Keepalive,
    stored: TokensFile | None = None,
) -> TokenizedDataset:
    """Render a JSONL file with the base model's own chat template; no document exceeds the context length.

    Tokens that validation stored of the same file in the same way are read instead.
    Raises Failure(failure_reason) for an invalid line, for a conversation that the template refuses, and for a file
    without a labelled token.
    """
    if stored and (tokens := _read_stored(renderer, parameters, stored)):
        return tokens
    dataset = TokenizedDataset.of_method(parameters.method)
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


def _read_stored(renderer: Renderer, parameters: DataParameters, stored: TokensFile) -> TokenizedDataset | None:
    """Return the stored tokens; None if they are altered, or not those that `read_dataset` would make."""
    if sha256_file(stored.path) != stored.sha256:
        return None
    with stored.path.open("rb") as file:
        return read_tokens(file, key_of(renderer, stored.dataset_sha256, parameters), parameters.method)


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
        # From pinned memory a copy to the GPU does not wait for the computation.
        return [batch.map_tensors(torch.Tensor.pin_memory) for batch in batches] if self._pin else batches
