"""Documents: tokens that attend to each other, truncated or split to the context length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from app.domain.jobs.spec import DataParameters
from app.domain.methods import METHODS

PREFERRED, REJECTED = 1, -1  # roles: preferred or desirable, rejected or undesirable; 0 is neither


@dataclass(frozen=True)
class Document:
    """Tokens that attend to each other, and for each token whether it is a target of the loss (never the first)."""

    line: int
    tokens: list[int]
    labelled: list[bool]
    role: int = 0  # PREFERRED (or desirable), REJECTED (or undesirable); 0: neither
    is_text: bool = False  # plain text, trained completely: it is split, not truncated

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labelled_count(self) -> int:
        return sum(self.labelled)


def truncate(documents: Iterable[Document], parameters: DataParameters) -> list[Document]:
    """The trainable documents of one example, within the context length.

    Plain text is split, other documents are truncated at their end, and a pair is kept only with both of its answers.
    """
    pieces = (piece for document in documents for piece in _pieces(document, parameters.context_length))
    return trainable(pieces, is_pair=METHODS[parameters.method].has_pairs)


def trainable(documents: Iterable[Document], *, is_pair: bool) -> list[Document]:
    """The documents with a label; none of a pair with an unlabelled answer or with two equal answers."""
    kept = [document for document in documents if document.labelled_count]
    if not is_pair:
        return kept
    by_role: dict[int, list[tuple[list[int], list[bool]]]] = {PREFERRED: [], REJECTED: []}
    for document in kept:
        by_role[document.role].append((document.tokens, document.labelled))
    return kept if all(by_role.values()) and by_role[PREFERRED] != by_role[REJECTED] else []


def split_examples(kept: Sequence[Document]) -> list[list[Document]]:
    """The examples of one line: each piece of a plain text is an example."""
    return [[document] for document in kept] if kept[0].is_text else [list(kept)]


def cut_at_end(document: Document, context_length: int) -> Document:
    """Truncate a document at its end, as OpenAI does; the caller reports it."""
    if len(document) <= context_length:
        return document
    return replace(document, tokens=document.tokens[:context_length], labelled=document.labelled[:context_length])


def exceeds_context(document: Document, context_length: int) -> bool:
    return len(document) > context_length and not document.is_text


def _pieces(document: Document, context_length: int) -> Iterator[Document]:
    """Each piece of a text begins with the last token of the previous piece, so only the first token is no target."""
    if not document.is_text or context_length < 2:
        yield cut_at_end(document, context_length)
        return
    for start in range(0, max(1, len(document) - 1), context_length - 1):
        piece = slice(start, start + context_length)
        yield replace(document, tokens=document.tokens[piece], labelled=[False, *document.labelled[piece][1:]])
