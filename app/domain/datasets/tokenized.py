"""The tokens of a file, which a run trains on: documents end to end, and their blocks, in which they are stored."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate, chain, islice
from typing import BinaryIO

from app.domain.datasets.documents import Document
from app.domain.methods import MethodName
from app.domain.planning.packing import SequenceLengths

# A block: the numbers of its examples, documents and tokens; of each example the line (8 bytes) and the number of
# documents (4); of each document the length (4) and the role (1); of each token the id (4) and the label (1).
COUNTS = struct.Struct("=3Q")
NOT_WHOLE = "a block of tokens is not whole"


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

    @classmethod
    def of_method(cls, method: MethodName) -> TokenizedDataset:
        """Return an empty dataset of a method's examples."""
        return cls(trains_prompts=method == "orpo")  # TRL and the authors' code do

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

    def block(self) -> bytes:
        """Return the content as bytes, which `add_block` reads."""
        sizes = array("i", map(int.__sub__, self._example_starts[1:], self._example_starts))
        lengths = array("i", map(int.__sub__, self._document_starts[1:], self._document_starts))
        counts = COUNTS.pack(len(self.lines), len(self._roles), len(self._tokens))
        parts = (self.lines, sizes, lengths, self._roles, self._tokens, self._labelled)
        return b"".join((counts, *map(bytes, parts)))

    def add_block(self, block: BinaryIO) -> bool:
        """Append the next block of a file; False at its end.

        Raises ValueError for a block that is not whole, or whose lengths contradict each other.
        """
        counts = block.read(COUNTS.size)
        if not counts:
            return False
        if len(counts) < COUNTS.size:
            raise ValueError(NOT_WHOLE)
        examples, documents, tokens = COUNTS.unpack(counts)
        lines, sizes, lengths = _read("q", examples, block), _read("i", examples, block), _read("i", documents, block)
        if sum(sizes) != documents or sum(lengths) != tokens or min(chain(sizes, lengths), default=1) < 1:
            raise ValueError("the lengths in a block of tokens contradict each other")
        self.lines.extend(lines)
        self._example_starts.extend(islice(accumulate(sizes, initial=self._example_starts[-1]), 1, None))
        self._document_starts.extend(islice(accumulate(lengths, initial=self._document_starts[-1]), 1, None))
        self._roles.extend(_read("b", documents, block))
        self._tokens.extend(_read("i", tokens, block))
        self._labelled += bytes(_read("B", tokens, block))
        return True


def _read(kind: str, count: int, block: BinaryIO) -> array[int]:
    """Read an array of `count` numbers. Raises ValueError."""
    numbers = array(kind)
    content = block.read(count * numbers.itemsize)
    if len(content) < count * numbers.itemsize:
        raise ValueError(NOT_WHOLE)
    numbers.frombytes(content)
    return numbers
