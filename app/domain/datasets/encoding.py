"""Rendered texts -> documents: tokens and labels, of many texts in one call of the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise

from tokenizers import Encoding, Tokenizer

from app.domain.datasets.chat_template import TemplateRefused
from app.domain.datasets.conversations import Span, within_spans
from app.domain.datasets.documents import Document
from app.domain.error_text.json_text import as_json

SHOWN_CHARACTERS = 60  # of a text at which the tokenizer fails
# Of the texts in one call. An encoding takes about 100 bytes a token, and a line of a dataset has up to 4 MiB: the
# texts of a longer line are encoded one after the other.
BATCH_CHARACTERS = 1 << 18


@dataclass(frozen=True)
class RenderedText:
    """The text of a document, and what of it is trained."""

    line: int
    text: str
    spans: Sequence[Span]  # the trained characters
    bos_tokens: Sequence[int] = ()  # begin the document, unless the text does
    role: int = 0  # that of the document, as is_text
    is_text: bool = False

    def __len__(self) -> int:
        """The number of characters."""
        return len(self.text)


class TextEncoder:
    """A tokenizer, and the rows of the embedding: texts with a token that has none are refused."""

    def __init__(self, tokenizer: Tokenizer, embedding_rows: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.rowless = _rowless_tokens(tokenizer, embedding_rows)  # by id
        self._embedding_rows = embedding_rows
        self._can_encode_in_parts = _can_encode_in_parts(tokenizer)

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text. Raises TemplateRefused."""
        tokens = list(encode(self.tokenizer, text).ids)
        self._check_rows(tokens)
        return tokens

    def documents(self, texts: Sequence[RenderedText]) -> list[Document]:
        """The documents of the texts, encoded one after the other. Raises TemplateRefused."""
        return self._documents(texts, (encode(self.tokenizer, part) for part in self._parts(texts)))

    def documents_of_each(
        self, examples: Sequence[Sequence[RenderedText]]
    ) -> Iterator[list[Document] | TemplateRefused]:
        """Yield what `documents` returns or raises for each example. The tokenizer encodes all of them in one call."""
        parts = [list(self._parts(texts)) for texts in examples]
        encodings = self._encode_batch(list(chain.from_iterable(parts)))
        for texts, own_parts in zip(examples, parts, strict=True):
            own_encodings = None if encodings is None else list(islice(encodings, len(own_parts)))
            try:
                yield self.documents(texts) if own_encodings is None else self._documents(texts, own_encodings)
            except TemplateRefused as error:
                yield error

    def _encode_batch(self, parts: list[str]) -> Iterator[Encoding] | None:
        """The encodings; None for texts that are to be encoded one after the other: too long ones, and those at which
        the tokenizer fails, as its error names no text."""
        if sum(map(len, parts)) > 2 * BATCH_CHARACTERS:
            return None
        try:
            return iter(self.tokenizer.encode_batch(parts, add_special_tokens=False))
        except BaseException as error:
            if not _is_panic(error):
                raise
            return None

    def _boundaries(self, text: RenderedText) -> list[int]:
        """The characters at which the parts of a text begin and end.

        A text is encoded in parts that begin at the answers, so that the tokens of a prompt are the same at inference:
        in one text the newline at the end of a prompt may merge with the following characters.
        """
        length = len(text)
        return sorted({0, length, *(span.start for span in text.spans)}) if self._can_encode_in_parts else [0, length]

    def _parts(self, texts: Iterable[RenderedText]) -> Iterator[str]:
        return (text.text[begin:end] for text in texts for begin, end in pairwise(self._boundaries(text)))

    def _documents(self, texts: Iterable[RenderedText], encodings: Iterable[Encoding]) -> list[Document]:
        """The documents of the texts; `encodings` are those of their parts, in order."""
        remaining = iter(encodings)
        return [self._document(text, remaining) for text in texts]

    def _document(self, text: RenderedText, encodings: Iterator[Encoding]) -> Document:
        tokens: list[int] = []
        starts: list[int] = []  # the character at which each token begins
        for begin, _ in pairwise(self._boundaries(text)):
            encoding = next(encodings)
            tokens += encoding.ids
            starts += [begin + start for start, _ in encoding.offsets]
        self._check_rows(tokens)
        labelled = within_spans(starts, text.spans)
        if tokens[: len(text.bos_tokens)] != list(text.bos_tokens):
            tokens, labelled = [*text.bos_tokens, *tokens], [False] * len(text.bos_tokens) + labelled
        if labelled:
            labelled[0] = False  # no token precedes the first one to predict it
        return Document(text.line, tokens, labelled, text.role, text.is_text)

    def _check_rows(self, tokens: Sequence[int]) -> None:
        if self.rowless and (rowless := next((token for token in tokens if token in self.rowless), None)):
            raise TemplateRefused(
                f"the token {as_json(self.rowless[rowless])} ({rowless:,}) has no row in the embedding of the base "
                f"model, which has {self._embedding_rows:,}; remove it from the text"
            )


def encode(tokenizer: Tokenizer, text: str, *, special: bool = False) -> Encoding:
    """The tokens of a text, with those that the tokenizer adds if `special`.

    Raises TemplateRefused that names the text if the tokenizer fails at it: by its regular expressions, for instance,
    which give up after many steps.
    """
    try:
        return tokenizer.encode(text, add_special_tokens=special)
    except BaseException as error:
        if not _is_panic(error):
            raise
        shown = as_json(text[:SHOWN_CHARACTERS])
        raise TemplateRefused(
            f"the model's tokenizer fails at the text that begins with {shown} ({len(text):,} characters): {error}; "
            "shorten it, or break up long repetitions"
        ) from None


def _is_panic(error: BaseException) -> bool:
    """Whether it is an error of Rust, which is no Exception, and whose class cannot be imported."""
    return type(error).__name__ == "PanicException"


def _rowless_tokens(tokenizer: Tokenizer, rows: int | None) -> dict[int, str]:
    """The tokens beyond the embedding's rows, by id."""
    if rows is None or tokenizer.get_vocab_size(with_added_tokens=True) <= rows:
        return {}
    return {
        token_id: token for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items() if token_id >= rows
    }


def _can_encode_in_parts(tokenizer: Tokenizer) -> bool:
    """Whether a text can be encoded in parts; not if the tokenizer adds a space at the beginning of each."""
    part = list(encode(tokenizer, "a b").ids)
    return str(tokenizer.decode(part + part, skip_special_tokens=False)) == "a ba b"
