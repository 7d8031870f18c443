"""Preference pairs: those of a file; or made from chat lines of GSM8K, the right answer before one with another result.

Pairs of people are on no package registry, so without a file they are made: in every second pair the rejected answer is
the right one with another number as its result, in the others it is the answer to another question.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

RESULT = re.compile(r"#### ?-?[\d,.]+\s*$")
MAX_CHARACTERS = 420  # of question and answer: about 120 tokens, so that a run takes minutes on a CPU


def read_pairs(source: Path, destination: Path, pairs: int | None = None) -> None:
    """Copy the first pairs of a file, by default all. Raises ValueError if there are fewer."""
    lines = source.read_text(encoding="utf-8").splitlines()
    if len(lines) < (pairs or 1):
        raise ValueError(f"{source.name} has {len(lines)} pairs, not {pairs or 1}")
    destination.write_text("".join(f"{line}\n" for line in lines[:pairs]), encoding="utf-8")


def write_labelled(pairs: Path, destination: Path, seed: int = 0) -> Path:
    """Write both answers of each pair as rows of KTO, shuffled: a row's neighbour has another prompt."""
    rows = []
    for pair in map(json.loads, pairs.read_text(encoding="utf-8").splitlines()):
        for name, label in (("preferred_output", True), ("non_preferred_output", False)):
            rows.append({"messages": pair["input"]["messages"] + pair[name], "label": label})
    random.Random(seed).shuffle(rows)
    destination.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return destination


def write_pairs(chats: Path, destination: Path, pairs: int, seed: int = 0) -> list[dict[str, Any]]:
    """Write the pairs of the first short lines as JSONL, and return them. Raises ValueError if there are too few."""
    lines = [json.loads(line)["messages"] for line in chats.read_text(encoding="utf-8").splitlines()]
    short = [messages for messages in lines if sum(len(each["content"]) for each in messages) <= MAX_CHARACTERS]
    if len(short) < pairs:
        raise ValueError(f"{chats.name} has {len(short)} lines of up to {MAX_CHARACTERS} characters, not {pairs}")
    rng = random.Random(seed)
    made = [_pair(short, number, rng) for number in range(pairs)]
    destination.write_text("".join(json.dumps(pair) + "\n" for pair in made), encoding="utf-8")
    return made


def _pair(chats: list[list[dict[str, Any]]], number: int, rng: random.Random) -> dict[str, Any]:
    *question, answer = chats[number]
    rejected = chats[(number + 1) % len(chats)][-1]["content"] if number % 2 else _other_result(answer["content"], rng)
    return {
        "input": {"messages": question},
        "preferred_output": [answer],
        "non_preferred_output": [{"role": "assistant", "content": rejected}],
    }


def _other_result(answer: str, rng: random.Random) -> str:
    result = RESULT.search(answer)
    assert result is not None, answer
    digits = int(re.sub(r"\D", "", result.group()))
    return answer[: result.start()] + f"#### {digits + rng.choice((-1, 1)) * rng.randint(1, max(2, digits // 4))}"
