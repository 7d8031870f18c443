"""KTO's mismatched documents: the prompt of each example of a step with the answer of the example before it.

Their log-probabilities are measured, never trained, so the documents have no role. As in TRL (trl 1.16.0, KTOTrainer),
the first prompt gets the answer of the last example. TRL rotates within a micro-batch, this module within a step, so
packing, accumulation and the number of processes don't change the result.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

from app.domain.datasets.documents import Document
from worker.trainer.data.batch import TokenizedDataset


def mismatched(
    dataset: TokenizedDataset, examples: Sequence[int], own: Collection[int], context_length: int
) -> TokenizedDataset:
    """Return a document of up to `context_length` tokens for each example in `own`; none if the step has one example.

    `examples` are those of the step in all processes.
    """
    documents = TokenizedDataset()
    for example, other in zip(examples, (*examples[-1:], *examples[:-1]), strict=True):
        if example in own and example != other:
            prompt, answer, labels = _split(dataset, example)[0], *_split(dataset, other)[1:]
            tokens = [*prompt, *answer][:context_length]
            labelled = [False] * len(prompt) + list(map(bool, labels))
            documents.add(dataset.lines[example], [Document(0, tokens, labelled[:context_length])])
    return documents


def _split(dataset: TokenizedDataset, example: int) -> tuple[array[int], array[int], bytearray]:
    """Return the tokens before the answer of an example, those of the answer, and the labels of the answer."""
    tokens, labels = dataset.tokens_and_labels(dataset.documents(example)[0])
    start = labels.index(1)
    return tokens[:start], tokens[start:], labels[start:]
