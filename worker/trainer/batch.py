"""Data set -> documents end to end -> the rows of one forward. No padding anywhere.

    corpus   | doc 0 ......... | doc 1 .. | doc 2 ...... |          every token of the data set, once
    row      | doc 7 .... | doc 1 .. | doc 4 ....... |              a few whole documents, flattened
    position   0 1 2 3 4    0 1 2      0 1 2 3 4 5                  restarts with each document
    target       ^ ^ ^        ^            ^ ^ ^                    where a label stands, the token *before* predicts it

Letters: T tokens in a row, N labelled tokens in a row.
"""
# ruff: noqa: N815  shapes stand in names

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from app.domain.dataset import read_examples
from app.domain.jsonl import Finding
from app.domain.layout import Lengths, packed
from app.domain.render import Document, Renderer, TemplateRefused, cut, learned
from app.domain.states import Reason
from worker.trainer.emit import Pulse
from worker.trainer.failures import Failure


class Corpus:
    """The documents of a data set that have something to learn, end to end, five bytes a token."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._labelled = bytearray()
        self._document_starts = array("q", [0])  # document d is the tokens from start d to start d + 1
        self._example_starts = array("q", [0])  # example e is the documents from start e to start e + 1
        self.lines = array("q")  # of each example, in the data set's file

    def __len__(self) -> int:
        """Examples."""
        return len(self.lines)

    @property
    def tokens(self) -> int:
        return len(self._tokens)

    @property
    def labelled_tokens(self) -> int:
        return self._labelled.count(1)

    def add(self, line: int, documents: Iterable[Document]) -> None:
        """Append one example; what has no label contributes nothing and is left out."""
        kept = learned(documents)
        if not kept:
            return
        for document in kept:
            self._tokens.extend(document.tokens)
            self._labelled.extend(document.labelled)
            self._document_starts.append(len(self._tokens))
        self._example_starts.append(len(self._document_starts) - 1)
        self.lines.append(line)

    def documents(self, example: int) -> range:
        return range(self._example_starts[example], self._example_starts[example + 1])

    def length(self, document: int) -> int:
        return self._document_starts[document + 1] - self._document_starts[document]

    def lengths(self) -> Lengths:
        documents = array("i", (self.length(document) for document in range(len(self._document_starts) - 1)))
        return Lengths(documents, self._example_starts)

    def slice(self, document: int) -> tuple[array[int], bytearray]:
        """Tokens of one document, and for each whether it is a target."""
        start, end = self._document_starts[document], self._document_starts[document + 1]
        return self._tokens[start:end], self._labelled[start:end]


def read_corpus(renderer: Renderer, path: Path, context_length: int, blame: Reason, pulse: Pulse) -> Corpus:
    """Render a JSONL file with the base model's own template, each document cut at `context_length` tokens.

    Raises Failure with the reason `blame` for a bad line, a conversation that the template refuses, or a file in which
    nothing is labelled.
    """
    corpus, param = Corpus(), blame.removeprefix("invalid_")  # training_file, validation_file
    with path.open("rb") as file:
        for example in read_examples(file):
            pulse(f"reading the {param.replace('_', ' ')}")
            if isinstance(example, Finding):
                raise Failure(blame, str(example), param)
            try:
                documents = renderer.documents(example)
            except TemplateRefused as error:
                raise Failure(blame, f"Line {example.line}: {error}", param) from error
            corpus.add(example.line, (cut(document, context_length) for document in documents))
    if not len(corpus):
        text = (
            f"No example has a token to learn within {context_length:,} tokens: every assistant message is empty, has "
            "weight 0, or begins after the cut. Raise hyperparameters.context_length or shorten the prompts."
        )
        raise Failure(blame, text, "hyperparameters.context_length")
    return corpus


EVERYTHING = sys.maxsize  # as the end of a segment: all tokens there are


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `end` of a row and, of its targets, `first` to `last`: those of one run."""

    run_id: str
    start: int
    end: int
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class Row:
    """One flattened forward: whole documents, one run's after the other's."""

    tokens_T: torch.Tensor  # int64
    positions_T: torch.Tensor  # int64
    lengths: tuple[int, ...]  # of the documents; they sum to T
    predictors_N: torch.Tensor  # positions whose next token is labelled
    targets_N: torch.Tensor  # that next token
    segments: tuple[Segment, ...]

    def to(self, device: torch.device) -> Row:
        names = ("tokens_T", "positions_T", "predictors_N", "targets_N")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def without_adapters(self) -> Row:
        return replace(self, segments=())


@dataclass(frozen=True)
class Share:
    """What one run puts into a step: some documents of its corpus, packed or each in a row of its own."""

    run_id: str
    corpus: Corpus
    documents: Sequence[int]
    packing: bool = True


def rows(shares: Sequence[Share], token_budget: int) -> Iterator[Row]:
    """Fill rows with whole documents, up to `token_budget` tokens each; a longer document gets a row of its own."""
    documents = [(share, document) for share in shares for document in share.documents]
    lengths = ((share.corpus.length(document), share.packing) for share, document in documents)
    return (_row(documents[row]) for row in packed(lengths, token_budget))


def _row(documents: Sequence[tuple[Share, int]]) -> Row:
    tokens, positions, predictors, lengths = array("i"), array("i"), array("i"), []
    segments: list[Segment] = []
    for share, document in documents:
        ids, labelled = share.corpus.slice(document)
        start, first = len(tokens), len(predictors)
        tokens.extend(ids)
        positions.extend(range(len(ids)))
        predictors.extend(start + at - 1 for at, is_labelled in enumerate(labelled) if is_labelled)
        lengths.append(len(ids))
        if segments and segments[-1].run_id == share.run_id:
            start, first = segments[-1].start, segments.pop().first
        segments.append(Segment(share.run_id, start, len(tokens), first, len(predictors)))
    tokens_T, positions_T, predictors_N = map(_int64, (tokens, positions, predictors))
    return Row(
        tokens_T=tokens_T,
        positions_T=positions_T,
        lengths=tuple(lengths),
        predictors_N=predictors_N,
        targets_N=tokens_T[predictors_N + 1],
        segments=tuple(segments),
    )


def _int64(numbers: array[int]) -> torch.Tensor:
    return torch.frombuffer(numbers, dtype=torch.int32).long()
