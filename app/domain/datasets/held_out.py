"""Which rows of a dataset are kept for validation: by a seed, with the shares of each label, and never a row whose
input is also in the rest.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_PERCENT = 50
MAX_SEED = 2_147_483_647
ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True)  # json.dumps would build one for every row
# An output is a label if a file has few different ones: at most so many, so short, and each so many times on average.
MAX_LABELS, MAX_LABEL_CHARACTERS, MIN_ROWS_PER_LABEL = 100, 200, 3


class CannotSplit(ValueError):
    """The rows cannot be split; the message says why."""


def input_of(row: Mapping[str, Any]) -> Any:
    """What the model is given in a row of any format, as JSON: the prompt, the messages before the answer, or all."""
    if "prompt" in row:
        return row["prompt"]
    if "input" in row:
        return row["input"]
    messages = row.get("messages")
    if isinstance(messages, list) and messages and _is_answer(messages[-1]):
        return messages[:-1]
    return messages or row.get("text") or row


def output_of(row: Mapping[str, Any]) -> str | None:
    """The text that an evaluation expects as the answer; None for a row that has none."""
    if "label" in row or "preferred_output" in row:
        return None
    messages = row.get("messages")
    has_answer = isinstance(messages, list) and messages and _is_answer(messages[-1])
    text = messages[-1].get("content") if has_answer and messages else row.get("completion")
    return text.strip() if isinstance(text, str) and text.strip() else None


def digest_of(value: Any) -> int:
    """64 bits of a JSON value; white space, letter case and the order of keys make no difference."""
    text = "".join(ENCODER.encode(value).replace("\\n", " ").casefold().split())
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


@dataclass
class RowKeys:
    """What the split knows of each row: a digest of its input, and its output while these may be labels."""

    inputs: list[int] = field(default_factory=list)
    outputs: list[str | None] = field(default_factory=list)
    are_answers: bool = True  # every row has an output
    are_objects: bool = True  # every output is a JSON object
    _distinct: set[str] = field(default_factory=set)

    def add(self, row: Mapping[str, Any]) -> None:
        self.inputs.append(digest_of(input_of(row)))
        kto_label, output = row.get("label"), output_of(row)
        self.are_answers = self.are_answers and output is not None
        self.are_objects = self.are_objects and output is not None and _is_object(output)
        label = str(kto_label).lower() if isinstance(kto_label, bool) else output
        if label is not None and len(label) <= MAX_LABEL_CHARACTERS and len(self._distinct) <= MAX_LABELS:
            self._distinct.add(label)
        else:
            label = None
        self.outputs.append(label)

    @property
    def are_labels(self) -> bool:
        """Whether the outputs are few enough for a classification."""
        return (
            None not in self.outputs
            and 2 <= len(self._distinct) <= MAX_LABELS
            and len(self._distinct) * MIN_ROWS_PER_LABEL <= len(self.outputs)
        )

    @property
    def grader(self) -> str | None:
        """The type of the grader that suits the outputs."""
        if not self.are_answers:
            return None
        if self.are_labels and not self.are_objects:
            return "label_accuracy"
        return "json_fields" if self.are_objects else "text_similarity"

    def held_out(self, percent: int, seed: int) -> bytearray:
        """As `choose_held_out`."""
        return choose_held_out(self.inputs, self.outputs if self.are_labels else None, percent, seed)

    def label_counts(self, held_out: Sequence[int]) -> dict[str, dict[str, int]] | None:
        """{label: {"training": rows, "held_out": rows}}, the most frequent first; None if the outputs are no labels."""
        if not self.are_labels:
            return None
        totals = Counter(self.outputs)
        kept = Counter(label for label, is_held_out in zip(self.outputs, held_out, strict=True) if is_held_out)
        return {
            str(label): {"training": total - kept[label], "held_out": kept[label]}
            for label, total in totals.most_common()
        }


def choose_held_out(
    inputs: Sequence[Hashable], labels: Sequence[Hashable] | None, percent: int, seed: int
) -> bytearray:
    """1 for each row that is held out, else 0: `percent` of the rows, rounded, at least one, and never all of a label.

    Rows of equal input stay together, with the label of the first one; so few of them may make the share smaller. The
    shares of labels are rounded by the largest remainder. Takes time linear in the rows. Raises CannotSplit.
    """
    sizes = Counter(inputs)
    if len(sizes) < 2:
        raise CannotSplit("held_out_percent needs rows with at least two different inputs")
    strata: dict[Hashable, dict[Hashable, None]] = {}
    of_input: dict[Hashable, Hashable] = {}
    for place, key in enumerate(inputs):
        if key not in of_input:
            of_input[key] = labels[place] if labels is not None else None
            strata.setdefault(of_input[key], {})[key] = None
    rows = {label: sum(sizes[key] for key in keys) for label, keys in strata.items()}
    quotas = _quotas(rows, percent)
    generator = random.Random(seed)
    chosen: set[Hashable] = set()
    candidates: list[Hashable] = []
    for label, keys in strata.items():
        order = list(keys)
        generator.shuffle(order)
        candidates += order[1:]  # the first one is trained
        free = quotas[label]
        for key in order[1:]:
            if sizes[key] <= free:
                chosen.add(key)
                free -= sizes[key]
    if not chosen:
        chosen.add(min(candidates or list(sizes), key=sizes.__getitem__))
    return bytearray(key in chosen for key in inputs)


def _quotas(rows: Mapping[Hashable, int], percent: int) -> dict[Hashable, int]:
    """How many rows of each label are held out, by the largest remainder."""
    total = max(1, (sum(rows.values()) * percent + 50) // 100)
    quotas = {label: count * percent // 100 for label, count in rows.items()}
    by_remainder = sorted(rows, key=lambda label: -(rows[label] * percent % 100))
    for label in by_remainder[: total - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def _is_answer(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _is_object(text: str) -> bool:
    if not text.startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
