"""Which examples make a step, which documents a row: arithmetic on lengths, for a plan and for the trainer."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from app.domain.jobs.spec import Hyperparameters

# For the largest row: with a million steps a job was planned for half a minute. A larger row that comes later is one
# that the trainer makes room for when it does (out of memory in a step is repaired).
SEARCHED_STEPS = 20_000
SAMPLED_STEPS = 256  # whose rows are counted: enough for their average length


@lru_cache(maxsize=16)
def permutation(examples: int, seed: int, epoch: int) -> Sequence[int]:
    """The order of an epoch: a function of its arguments alone, so any step can be found again without a history."""
    order = list(range(examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def packed(lengths: Iterable[tuple[int, bool]], token_budget: int) -> Iterator[slice]:
    """Rows as slices of documents, given as (tokens, whether it shares a row): whole documents up to `token_budget`.

    A longer document has a row of its own.
    """
    start = end = tokens = 0
    packs = True
    for length, shares in lengths:
        if end > start and (tokens + length > token_budget or not (shares and packs)):
            yield slice(start, end)
            start, tokens = end, 0
        end, tokens, packs = end + 1, tokens + length, shares
    if end > start:
        yield slice(start, end)


def total_steps(hyperparameters: Hyperparameters, examples: int) -> int:
    """`max_steps`, where given, replaces the epochs as the end of training, as in other trainers."""
    steps_per_epoch = math.ceil(examples / hyperparameters.batch_size)
    return hyperparameters.max_steps or hyperparameters.n_epochs * steps_per_epoch


def validations(hyperparameters: Hyperparameters, examples: int) -> int:
    """Every `eval_steps`, else at each epoch's end; at the very end always."""
    steps_per_epoch = math.ceil(examples / hyperparameters.batch_size)
    return math.ceil(total_steps(hyperparameters, examples) / (hyperparameters.eval_steps or steps_per_epoch))


@dataclass
class Lengths:
    """Tokens of each unit that has something to learn and stays in one row, and how many units each example has.

    A unit is a document; of DPO both documents of a pair.
    """

    tokens: array[int] = field(default_factory=lambda: array("i"))
    starts: array[int] = field(default_factory=lambda: array("q", [0]))  # example e is the units start e to e + 1
    squares: int = 0  # of the documents' tokens: what attends to each other

    def __len__(self) -> int:
        """Examples."""
        return len(self.starts) - 1

    @property
    def longest(self) -> int:
        return max(self.tokens, default=0)

    @property
    def attended(self) -> int:
        """How many tokens a token's document has, on average over tokens."""
        return self.squares // max(1, sum(self.tokens))

    def add(self, documents: Sequence[int], is_pair: bool = False) -> None:
        """One example."""
        self.tokens.extend([sum(documents)] if is_pair else documents)
        self.starts.append(len(self.tokens))
        self.squares += sum(length * length for length in documents)

    def of_example(self, example: int) -> array[int]:
        return self.tokens[self.starts[example] : self.starts[example + 1]]


def trained_tokens(lengths: Lengths, knobs: Hyperparameters, seed: int) -> int:
    """Real tokens that go through the model until the last step: exact, also with `max_steps`."""
    steps, per_epoch = total_steps(knobs, len(lengths)), math.ceil(len(lengths) / knobs.batch_size)
    whole, rest = divmod(steps, per_epoch)
    order = permutation(len(lengths), seed, whole)[: rest * knobs.batch_size]
    return whole * sum(lengths.tokens) + sum(sum(lengths.of_example(example)) for example in order)


def largest_row(lengths: Lengths, knobs: Hyperparameters, seed: int, row_tokens: int) -> tuple[int, int]:
    """(step, tokens) of the largest row of the first SEARCHED_STEPS; the first of equals. (0, 0) without examples."""
    found = (0, 0)
    for step in range(min(SEARCHED_STEPS, total_steps(knobs, len(lengths))) if len(lengths) else 0):
        documents = _documents(lengths, knobs, seed, step)
        for row in packed([(length, knobs.packing) for length in documents], row_tokens):
            if (tokens := sum(documents[row])) > found[1]:
                found = step, tokens
        if found[1] >= max(row_tokens, lengths.longest):
            break  # no row can be larger
    return found


def mean_row(lengths: Lengths, knobs: Hyperparameters, seed: int, row_tokens: int) -> float:
    """Tokens of a row on average, over the first steps of the run; 0 without examples."""
    tokens = rows = 0
    for step in range(min(SAMPLED_STEPS, total_steps(knobs, len(lengths))) if len(lengths) else 0):
        documents = _documents(lengths, knobs, seed, step)
        tokens += sum(documents)
        rows += sum(1 for _ in packed([(length, knobs.packing) for length in documents], row_tokens))
    return tokens / max(1, rows)


def most_attended(lengths: Lengths, knobs: Hyperparameters, seed: int, row_tokens: int, longest: int) -> int:
    """Squares of documents' lengths in one row, at most: of the rows of the first steps that have no document of more
    than `longest` tokens. The sides of DPO's pairs don't see each other."""
    seen = lengths.squares / max(1, sum(length * length for length in lengths.tokens))
    most = 0
    for step in range(min(SAMPLED_STEPS, total_steps(knobs, len(lengths))) if len(lengths) else 0):
        documents = _documents(lengths, knobs, seed, step)
        for row in packed([(length, knobs.packing) for length in documents], row_tokens):
            if seen * max(documents[row]) <= longest:
                most = max(most, sum(length * length for length in documents[row]))
    return int(seen * most)


def _documents(lengths: Lengths, knobs: Hyperparameters, seed: int, step: int) -> list[int]:
    """The lengths of what one step is made of, in its order."""
    epoch, position = divmod(step, math.ceil(len(lengths) / knobs.batch_size))
    batch = permutation(len(lengths), seed, epoch)[position * knobs.batch_size : (position + 1) * knobs.batch_size]
    return [length for example in batch for length in lengths.of_example(example)]
