"""The generated tasks: the same rows every time, and nothing of the held-out ones in training."""

from __future__ import annotations

import hashlib
import json

import pytest

from benchmarks.tasks import HELD_OUT, TASKS, Task

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


def test_the_sums_are_right() -> None:
    for _, answer in TASKS["arithmetic"].training_rows():
        assert all(eval(left) == int(right) for left, right in (part.split("=") for part in answer.split(",")))
