"""Documents: the tokens of an example that attend to each other, and what of them fits into the context length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

PREFERRED, NON_PREFERRED = 1, -1  # the sides of a pair, as signs of what they add to its margin


@dataclass(frozen=True)
class Document:
    """Tokens that attend to each other, and for each whether it is a target of the loss (never the first one)."""

    line: int
    tokens: list[int]
    labelled: list[bool]
    side: int = 0  # of a preference pair: PREFERRED or NON_PREFERRED
    is_text: bool = False  # learned whole, so what is too long is split and not cut

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labelled_count(self) -> int:
        return sum(self.labelled)


def fit(documents: Iterable[Document], context_length: int) -> list[Document]:
    """What of one example is trained: within the context length, and with something to learn. Often nothing is lost.

    A plain text is split, an answer is cut at its end, and a pair counts only with both of its sides.
    """
    return learned(piece for document in documents for piece in _pieces(document, context_length))


def learned(documents: Iterable[Document]) -> list[Document]:
    """The documents with a label; none of a pair of which one side has none, or whose sides are the same."""
    kept = [document for document in documents if document.labelled_count]
    if not any(document.side for document in kept):
        return kept
    sides: dict[int, list[tuple[list[int], list[bool]]]] = {PREFERRED: [], NON_PREFERRED: []}
    for document in kept:
        sides[document.side].append((document.tokens, document.labelled))
    return kept if all(sides.values()) and sides[PREFERRED] != sides[NON_PREFERRED] else []


def by_example(kept: Sequence[Document]) -> list[list[Document]]:
    """The examples of one line: every piece of a text is one of its own."""
    return [[document] for document in kept] if kept[0].is_text else [list(kept)]


def cut(document: Document, context_length: int) -> Document:
    """Cut a document at its end, as OpenAI does; the caller reports it."""
    if len(document) <= context_length:
        return document
    return replace(document, tokens=document.tokens[:context_length], labelled=document.labelled[:context_length])


def is_cut(document: Document, context_length: int) -> bool:
    return len(document) > context_length and not document.is_text


def _pieces(document: Document, context_length: int) -> Iterator[Document]:
    """Each piece of a text begins with the last token of the one before, so every token but the first is a target."""
    if not document.is_text or context_length < 2:
        yield cut(document, context_length)
        return
    for start in range(0, max(1, len(document) - 1), context_length - 1):
        piece = slice(start, start + context_length)
        yield replace(document, tokens=document.tokens[piece], labelled=[False, *document.labelled[piece][1:]])
