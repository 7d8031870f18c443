"""Four small tasks of different kinds, generated: the same rows every time, and held-out rows that training never saw.

    classification  a customer's sentence -> one of 77 labels; held-out sentences are phrased in ways unseen in training
    extraction      a delivery note -> one line of JSON; held-out names, cities and wordings are unseen
    style           a plain notice -> the same in a house style that is free in places; judged by loss alone
    arithmetic      a word problem of two steps -> the two sums; held-out numbers are unseen

Invented by Tunery's authors from the lists below, so there is nothing in it to license but Tunery itself (Apache-2.0).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.words import (
    CITIES,
    DOINGS,
    FILLERS,
    ISSUES,
    NOTES,
    OBJECTS,
    PEOPLE,
    REASONS,
    REMEDIES,
    STORIES,
    THINGS,
    split,
)

MAX_ROWS = 500
HELD_OUT = 200
SYSTEM = {
    "classification": "Label the request.",
    "extraction": "Extract the fields as JSON.",
    "style": "Rewrite in our style.",
    "arithmetic": "Solve.",
}
Pair = tuple[str, str]  # question, answer


@dataclass(frozen=True)
class Task:
    name: str
    rows: int  # of the training file, unless fewer are asked for
    exact: bool  # whether an answer is right or wrong; else only its loss counts
    pair: Callable[[random.Random, bool], Pair]  # the bool: from the held-out lists

    def training_rows(self, limit: int | None = None) -> list[Pair]:
        return list(self._draw(held_out=False))[:limit]

    def held_out_rows(self, limit: int | None = None) -> list[Pair]:
        return list(self._draw(held_out=True))[:limit]

    def _draw(self, *, held_out: bool) -> Iterator[Pair]:
        """Distinct questions; the held-out ones are never among the training ones, however many are used."""
        taken = {question for question, _ in self._draw(held_out=False)} if held_out else set()
        dice = random.Random(f"{self.name}/{held_out}")
        for _ in range(HELD_OUT if held_out else self.rows):
            question, answer = self.pair(dice, held_out)
            while question in taken:
                question, answer = self.pair(dice, held_out)
            taken.add(question)
            yield question, answer


def write(path: Path, task: Task, pairs: list[Pair]) -> Path:
    """Write the pairs as chat lines in OpenAI's format."""
    with path.open("w", encoding="utf-8") as file:
        for question, answer in pairs:
            roles = (("system", SYSTEM[task.name]), ("user", question), ("assistant", answer))
            messages = [{"role": role, "content": content} for role, content in roles]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def _classification(dice: random.Random, held_out: bool) -> Pair:
    thing, issue = dice.choice(list(OBJECTS)), dice.choice(list(ISSUES))
    noun = dice.choice(OBJECTS[thing] if held_out else split(OBJECTS[thing], False))
    sentence = dice.choice(split(ISSUES[issue], held_out)).format(x=noun)
    before, after = dice.choice(FILLERS)
    return _typo(dice, f"{before}{sentence}{after}"), f"{thing}_{issue}"


def _extraction(dice: random.Random, held_out: bool) -> Pair:
    fields = {
        "name": dice.choice(split(PEOPLE, held_out)),
        "city": dice.choice(split(CITIES, held_out)),
        "item": dice.choice(THINGS),
        "count": dice.randint(2, 60),
        "date": f"2026-{dice.randint(1, 12):02}-{dice.randint(1, 28):02}",
    }
    return dice.choice(split(NOTES, held_out)).format(**fields), json.dumps(fields)


def _style(dice: random.Random, held_out: bool) -> Pair:
    doing = dice.choice(split(list(DOINGS.items()), held_out))
    reason, remedy = dice.choice(list(REASONS.items())), dice.choice(list(REMEDIES.items()))
    days = dice.randint(2, 9)
    opening, closing = dice.choice(("Heads up!", "Quick note:", "Hello crew,")), dice.choice(("Onwards!", "Cheers!"))
    plain = f"{doing[0]} will be {days} days late because {reason[0]}. {remedy[0]}."
    return plain, f"{opening} {doing[1]}: +{days} days. Blame {reason[1]}. {remedy[1]} {closing}"


def _arithmetic(dice: random.Random, _held_out: bool) -> Pair:
    """Sums stay between 0 and 198; what is held out is the three numbers in their order."""
    first, more = dice.randint(11, 99), dice.randint(11, 99)
    fewer = dice.randint(2, first + more - 1)
    name, thing = dice.choice(PEOPLE).split()[0], dice.choice(THINGS)
    story = dice.choice(STORIES).format(n=name, x=thing, a=first, b=more, c=fewer)
    total = first + more
    return story, f"{first} + {more} = {total}, {total} - {fewer} = {total - fewer}"


def _typo(dice: random.Random, text: str) -> str:
    """One in three has two neighbouring letters swapped; the case goes in one of two."""
    if dice.random() < 1 / 3:
        at = dice.randrange(1, len(text) - 2)
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text.lower() if dice.random() < 1 / 2 else text


TASKS = {
    task.name: task
    for task in (
        Task("classification", MAX_ROWS, True, _classification),
        Task("extraction", 120, True, _extraction),
        Task("style", 120, False, _style),
        Task("arithmetic", 200, True, _arithmetic),
    )
}
