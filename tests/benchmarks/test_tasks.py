"""The generated tasks: the same rows every time, and nothing of the held-out ones in training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from app.domain.datasets.examples import Example, read_examples
from benchmarks.tasks import HELD_OUT, MAX_ROWS, TASKS, Task, write
from benchmarks.words import ISSUES, split

FINGERPRINTS = {
    "classification": "e7655fe44f34",
    "extraction": "a7a539c032f7",
    "style": "7b4e708f679d",
    "arithmetic": "2a98d1d497b0",
}


def fingerprint(task: Task) -> str:
    text = json.dumps([task.training_rows(), task.held_out_rows()])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


each_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


@each_task
def test_a_task_is_the_same_on_every_machine(task: Task) -> None:
    assert fingerprint(task) == FINGERPRINTS[task.name]


@each_task
def test_no_held_out_question_is_in_training_and_none_is_repeated(task: Task) -> None:
    trained = [asked for asked, _ in task.training_rows()]
    held_out = [asked for asked, _ in task.held_out_rows()]
    assert (len(trained), len(held_out)) == (task.rows, HELD_OUT)
    assert len({*trained, *held_out}) == len(trained) + len(held_out)


def test_a_training_question_is_not_held_out() -> None:
    toy = Task("toy", 40, True, lambda dice, _held_out: (str(dice.randrange(250)), "an answer"))
    assert not set(toy.training_rows()) & set(toy.held_out_rows())


@each_task
def test_a_task_has_at_most_five_hundred_rows_and_fewer_are_its_first(task: Task) -> None:
    assert task.rows <= MAX_ROWS
    assert task.training_rows(10) == task.training_rows()[:10]


@each_task
def test_every_row_is_an_example_that_the_trainer_accepts(task: Task, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", task, task.held_out_rows())
    with path.open("rb") as file:
        examples = list(read_examples(file))
    assert len(examples) == HELD_OUT
    assert all(isinstance(example, Example) for example in examples)


def test_classification_asks_for_all_of_its_labels_and_phrases_the_held_out_ones_anew() -> None:
    task = TASKS["classification"]
    assert len({label for _, label in task.training_rows()}) == 77
    assert not any(set(split(wordings, True)) & set(split(wordings, False)) for wordings in ISSUES.values())


def test_the_sums_are_right() -> None:
    for _, answer in TASKS["arithmetic"].training_rows():
        assert all(eval(left) == int(right) for left, right in (part.split("=") for part in answer.split(",")))
