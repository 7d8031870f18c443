"""Data set -> documents end to end -> the rows of one forward. No padding anywhere.

    corpus   | doc 0 ......... | doc 1 .. | doc 2 ...... |          every token of the data set, once
    row      | doc 7 .... | doc 1 .. | doc 4 ....... |              a few whole documents, flattened
    position   0 1 2 3 4    0 1 2      0 1 2 3 4 5                  restarts with each document
    target       ^ ^ ^        ^            ^ ^ ^                    where a label stands, the token *before* predicts it

Of DPO the documents of a pair, its two answers each after the prompt, stay in one row: its margin is a sum over both.

Letters: T tokens in a row, N labelled tokens in a row, P pairs in a row.
"""
# ruff: noqa: N815  shapes stand in names

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch

from app.domain.chat_template import TemplateRefused
from app.domain.dataset import read_examples
from app.domain.dataset_report import nothing_to_learn
from app.domain.documents import Document, fit, learned
from app.domain.jsonl import Finding
from app.domain.layout import Lengths, packed
from app.domain.render import Renderer
from app.domain.spec import LINE_RULES, LineRules, Method
from app.domain.states import Reason
from worker.trainer.emit import Pulse
from worker.trainer.failures import Failure


class Corpus:
    """The documents of a data set that have something to learn, end to end, five bytes a token."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._labelled = bytearray()
        self._sides = array("b")  # of each document
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
        """Append what one line holds: an example, of plain text one for each piece.

        What has no label contributes nothing and is left out; a pair is left out whole.
        """
        kept = learned(documents)
        if kept and not kept[0].is_text:
            self._append(line, kept)
        else:
            for piece in kept:
                self._append(line, [piece])

    def _append(self, line: int, documents: Iterable[Document]) -> None:
        for document in documents:
            self._tokens.extend(document.tokens)
            self._labelled.extend(document.labelled)
            self._sides.append(document.side)
            self._document_starts.append(len(self._tokens))
        self._example_starts.append(len(self._document_starts) - 1)
        self.lines.append(line)

    def documents(self, example: int) -> range:
        return range(self._example_starts[example], self._example_starts[example + 1])

    def example_of(self, document: int) -> int:
        return bisect_right(self._example_starts, document) - 1

    def side(self, document: int) -> int:
        """1 for a document of a pair's preferred answer, -1 for one of the other, 0 where there are no pairs."""
        return self._sides[document]

    def length(self, document: int) -> int:
        return self._document_starts[document + 1] - self._document_starts[document]

    def tokens_of(self, example: int) -> int:
        first, last = self._example_starts[example], self._example_starts[example + 1]
        return self._document_starts[last] - self._document_starts[first]

    def lengths(self) -> Lengths:
        """Of what must stay in one row: documents, or both sides of a pair."""
        lengths = Lengths()
        for example in range(len(self)):
            documents = self.documents(example)
            lengths.add([self.length(document) for document in documents], is_pair=self.side(documents[0]) != 0)
        return lengths

    def slice(self, document: int) -> tuple[array[int], bytearray]:
        """Tokens of one document, and for each whether it is a target."""
        start, end = self._document_starts[document], self._document_starts[document + 1]
        return self._tokens[start:end], self._labelled[start:end]


def read_corpus(
    renderer: Renderer,
    path: Path,
    context_length: int,
    blame: Reason,
    pulse: Pulse,
    method: Method = "supervised",
    rules: LineRules = LINE_RULES,
) -> Corpus:
    """Render a JSONL file with the base model's own template, each document within `context_length` tokens.

    Raises Failure with the reason `blame` for a bad line, a conversation that the template refuses, or a file in which
    nothing is labelled.
    """
    corpus, param = Corpus(), blame.removeprefix("invalid_")  # training_file, validation_file
    with path.open("rb") as file:
        for example in read_examples(file, method=method, rules=rules):
            pulse(f"reading the {param.replace('_', ' ')}")
            if isinstance(example, Finding):
                raise Failure(blame, f"{example}.", param)
            try:
                documents = renderer.documents(example)
            except TemplateRefused as error:
                raise Failure(blame, f"Line {example.line}: {error}.", param) from error
            corpus.add(example.line, fit(documents, context_length))
    if not len(corpus):
        raise Failure(blame, nothing_to_learn(method, context_length), "hyperparameters.context_length")
    return corpus


EVERYTHING = sys.maxsize  # as the end of a segment: all tokens there are


@dataclass(frozen=True)
class Segment:
    """One run's part of a row: its tokens, its targets and its pairs, each from a first one up to, not with, an end."""

    run_id: str
    start: int  # of its tokens, 0 to T
    end: int
    first_target: int = 0  # 0 to N
    end_target: int = 0
    first_pair: int = 0  # 0 to P
    end_pair: int = 0


@dataclass(frozen=True)
class Pairs:
    """Which of a row's targets belong to which pair. A target of no pair counts for pair number P."""

    pairs_N: torch.Tensor  # int64
    signs_N: torch.Tensor  # float32: 1 for what is preferred and for what belongs to no pair, -1 for what is not
    betas_P: torch.Tensor  # float64

    def to(self, device: torch.device) -> Pairs:
        return Pairs(*(part.to(device, non_blocking=True) for part in (self.pairs_N, self.signs_N, self.betas_P)))


@dataclass(frozen=True)
class Row:
    """One flattened forward: whole documents, one run's after the other's."""

    tokens_T: torch.Tensor  # int64: ids
    positions_T: torch.Tensor  # int64: within the document
    lengths: tuple[int, ...]  # of the documents; they sum to T
    predictors_N: torch.Tensor  # int64: where in the row the token before a labelled one stands
    targets_N: torch.Tensor  # int64: the labelled token's id
    segments: tuple[Segment, ...]
    pairs: Pairs | None = None  # where there are any

    def to(self, device: torch.device) -> Row:
        names = ("tokens_T", "positions_T", "predictors_N", "targets_N")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved, pairs=self.pairs.to(device) if self.pairs else None)

    def without_adapters(self) -> Row:
        return replace(self, segments=())

    def as_reference(self, adapters: Container[str]) -> Row:
        """The row as DPO's reference model has it: adapters off, but for those that a run began from."""
        named = [(segment, reference_id(segment.run_id)) for segment in self.segments]
        return replace(self, segments=tuple(replace(seg, run_id=name) for seg, name in named if name in adapters))


def reference_id(run_id: str) -> str:
    """The name of the adapter that a run began from, where it is kept as DPO's reference."""
    return f"{run_id} at its start"


@dataclass(frozen=True)
class Share:
    """What one run puts into a step: some documents of its corpus, packed or each in a row of its own."""

    run_id: str
    corpus: Corpus
    documents: Sequence[int]
    packing: bool = True
    beta: float | None = None  # of DPO: then the documents are those of pairs

    def units(self) -> Iterator[list[int]]:
        """What must stay in one row: a document, or of DPO all documents of a pair."""
        if self.beta is None:
            return ([document] for document in self.documents)
        return (list(pair) for _, pair in groupby(self.documents, self.corpus.example_of))


Unit = tuple[Share, list[int]]


def rows(shares: Sequence[Share], token_budget: int) -> Iterator[Row]:
    """Fill rows with whole documents, up to `token_budget` tokens each; what is longer gets a row of its own."""
    units = [(share, unit) for share in shares for unit in share.units()]
    lengths = ((sum(map(share.corpus.length, unit)), share.packing) for share, unit in units)
    return (_row(units[row]) for row in packed(lengths, token_budget))


def _row(units: Sequence[Unit]) -> Row:
    documents = [(share, document) for share, unit in units for document in unit]
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
            start, first = segments[-1].start, segments.pop().first_target
        segments.append(Segment(share.run_id, start, len(tokens), first, len(predictors)))
    tokens_T, positions_T, predictors_N = map(_int64, (tokens, positions, predictors))
    return Row(
        tokens_T=tokens_T,
        positions_T=positions_T,
        lengths=tuple(lengths),
        predictors_N=predictors_N,
        targets_N=tokens_T[predictors_N + 1],
        segments=tuple(_with_pairs(segments, units)),
        pairs=_pairs(units),
    )


def _pairs(units: Sequence[Unit]) -> Pairs | None:
    betas = [share.beta for share, _ in units if share.beta is not None]
    if not betas:
        return None
    pairs, signs, pair = array("i"), array("i"), 0
    for share, unit in units:
        for document in unit:
            labels = share.corpus.slice(document)[1].count(1)
            pairs.extend([len(betas) if share.beta is None else pair] * labels)
            signs.extend([share.corpus.side(document) if share.beta is not None else 1] * labels)
        pair += share.beta is not None
    return Pairs(_int64(pairs), _int64(signs).float(), torch.tensor(betas, dtype=torch.float64))


def _with_pairs(segments: Sequence[Segment], units: Sequence[Unit]) -> Iterator[Segment]:
    first = 0
    for segment in segments:
        end = first + sum(share.run_id == segment.run_id and share.beta is not None for share, _ in units)
        yield replace(segment, first_pair=first, end_pair=end)
        first = end


def _int64(numbers: array[int]) -> torch.Tensor:
    return torch.frombuffer(numbers, dtype=torch.int32).long()
