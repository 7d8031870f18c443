"""Packing: the examples of each step, the sequences of each packed batch and the workload, from lengths alone.

The plan and the trainer share it. A sequence is what must stay in one packed batch: a document, or both documents of a
preference pair. A packed batch has at most `row_tokens` tokens, or one longer sequence.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from app.domain.jobs.spec import Hyperparameters, JobSpec

# For the largest packed batch: planning a job with a million steps took half a minute. If a later batch is larger and
# does not fit into memory, the trainer's out-of-memory policy handles it.
SEARCHED_STEPS = 20_000
SAMPLED_STEPS = 256  # enough for the mean length of a packed batch


@lru_cache(maxsize=16)
def permutation(examples: int, seed: int, epoch: int) -> Sequence[int]:
    """The order of the examples in an epoch. It depends only on the arguments, so a run can resume at any step."""
    order = list(range(examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def pack(lengths: Iterable[tuple[int, bool]], token_budget: int) -> Iterator[slice]:
    """Yield packed batches as slices of the sequences, of at most `token_budget` tokens.

    `lengths` are (tokens, whether the sequence may share a batch). A longer sequence has a batch of its own.
    """
    start = end = tokens = 0
    previous_is_shareable = True
    for length, is_shareable in lengths:
        is_shared = is_shareable and previous_is_shareable
        if end > start and (tokens + length > token_budget or not is_shared):
            yield slice(start, end)
            start, tokens = end, 0
        end, tokens, previous_is_shareable = end + 1, tokens + length, is_shareable
    if end > start:
        yield slice(start, end)


def total_steps(hyperparameters: Hyperparameters, examples: int) -> int:
    """The number of optimizer steps; `max_steps` overrides the epochs, as in other trainers."""
    steps_per_epoch = math.ceil(examples / hyperparameters.batch_size)
    return hyperparameters.max_steps or hyperparameters.n_epochs * steps_per_epoch


def validation_count(hyperparameters: Hyperparameters, examples: int) -> int:
    """The number of validations: every `eval_steps` or at the end of each epoch, and at the end of training."""
    steps_per_epoch = math.ceil(examples / hyperparameters.batch_size)
    return math.ceil(total_steps(hyperparameters, examples) / (hyperparameters.eval_steps or steps_per_epoch))


@dataclass
class SequenceLengths:
    """The lengths in tokens of the trainable sequences, and how many sequences each example has."""

    tokens: array[int] = field(default_factory=lambda: array("i"))
    # Example e has the sequences from start e to start e + 1.
    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    squares: int = 0  # sum of the squared lengths of the documents: pairs of tokens in attention

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.starts) - 1

    @property
    def max_tokens(self) -> int:
        return max(self.tokens, default=0)

    @property
    def mean_attended_tokens(self) -> int:
        """The length of a token's document, averaged over all tokens."""
        return self.squares // max(1, sum(self.tokens))

    def add(self, documents: Sequence[int], is_pair: bool = False) -> None:
        """Append one example, given by the lengths of its documents."""
        self.tokens.extend([sum(documents)] if is_pair else documents)
        self.starts.append(len(self.tokens))
        self.squares += sum(length * length for length in documents)

    def of_example(self, example: int) -> array[int]:
        return self.tokens[self.starts[example] : self.starts[example + 1]]


def trained_tokens(lengths: SequenceLengths, hyperparameters: Hyperparameters, seed: int) -> int:
    """The exact number of tokens that the model processes in all steps, also with `max_steps`."""
    steps, per_epoch = total_steps(hyperparameters, len(lengths)), math.ceil(len(lengths) / hyperparameters.batch_size)
    full_epochs, steps_left = divmod(steps, per_epoch)
    order = permutation(len(lengths), seed, full_epochs)[: steps_left * hyperparameters.batch_size]
    return full_epochs * sum(lengths.tokens) + sum(sum(lengths.of_example(example)) for example in order)


@dataclass(frozen=True)
class Workload:
    """What a job computes, derived from its spec and the lengths of its data."""

    steps: int
    tokens: int  # processed in all training steps
    lengths: SequenceLengths
    labelled_share: float = 1.0  # of the tokens; only these need logits
    validated_tokens: int = 0  # in all validations together
    mean_attended_tokens: int = 0  # length of a token's document, averaged over tokens

    @classmethod
    def of(
        cls, spec: JobSpec, lengths: SequenceLengths, labelled_tokens: int | None = None, validation_tokens: int = 0
    ) -> Workload:
        """`labelled_tokens` are those of one epoch, `validation_tokens` those of one validation."""
        hyperparameters, tokens = spec.hyperparameters, sum(lengths.tokens)
        share = 1.0 if labelled_tokens is None else labelled_tokens / max(1, tokens)
        if spec.method == "orpo":  # all tokens of the preferred answers' documents are targets, and those are half
            share = (1 + share) / 2
        if not len(lengths):
            return cls(total_steps(hyperparameters, 0), 0, lengths, share)
        return cls(
            steps=total_steps(hyperparameters, len(lengths)),
            tokens=trained_tokens(lengths, hyperparameters, spec.seed),
            lengths=lengths,
            labelled_share=share,
            validated_tokens=validation_tokens * validation_count(hyperparameters, len(lengths)),
            mean_attended_tokens=lengths.mean_attended_tokens,
        )


def largest_batch(
    lengths: SequenceLengths, hyperparameters: Hyperparameters, seed: int, row_tokens: int
) -> tuple[int, int]:
    """(step, tokens) of the first largest packed batch in the first SEARCHED_STEPS steps; (0, 0) without examples."""
    largest, limit = (0, 0), max(row_tokens, lengths.max_tokens)
    for step, batch in _packed_batches(lengths, hyperparameters, seed, row_tokens, SEARCHED_STEPS):
        if (tokens := sum(batch)) > largest[1]:
            largest = step, tokens
        if tokens >= limit:
            break  # no packed batch can be larger
    return largest


def mean_packed_length(lengths: SequenceLengths, hyperparameters: Hyperparameters, seed: int, row_tokens: int) -> float:
    """The mean tokens of a packed batch in the first SAMPLED_STEPS steps; 0 without examples."""
    batches = [sum(each) for _, each in _packed_batches(lengths, hyperparameters, seed, row_tokens, SAMPLED_STEPS)]
    return sum(batches) / max(1, len(batches))


def max_attention_cost(
    lengths: SequenceLengths,
    hyperparameters: Hyperparameters,
    seed: int,
    row_tokens: int,
    max_document_tokens: int,
) -> int:
    """The largest sum of squared document lengths in one packed batch of the first SAMPLED_STEPS steps.

    Batches with a longer document than `max_document_tokens` do not count. The two documents of a pair do not attend
    to each other: the sum of the squared sequence lengths is scaled to the mean of the documents.
    """
    document_share = lengths.squares / max(1, sum(length * length for length in lengths.tokens))
    cost = 0
    for _, batch in _packed_batches(lengths, hyperparameters, seed, row_tokens, SAMPLED_STEPS):
        if document_share * max(batch) <= max_document_tokens:
            cost = max(cost, sum(length * length for length in batch))
    return int(document_share * cost)


def _packed_batches(
    lengths: SequenceLengths, hyperparameters: Hyperparameters, seed: int, row_tokens: int, max_steps: int
) -> Iterator[tuple[int, list[int]]]:
    """(step, the lengths of the sequences) of each packed batch of the first steps."""
    examples, batch_size = len(lengths), hyperparameters.batch_size
    for step in range(min(max_steps, total_steps(hyperparameters, examples)) if examples else 0):
        epoch, position = divmod(step, math.ceil(examples / batch_size))
        order = permutation(examples, seed, epoch)[position * batch_size : (position + 1) * batch_size]
        step_lengths = [length for example in order for length in lengths.of_example(example)]
        for batch in pack([(length, hyperparameters.packing) for length in step_lengths], row_tokens):
            yield step, step_lengths[batch]
