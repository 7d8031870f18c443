"""Evaluations of a finished job: how they are asked for, and a worker with a fake generation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.db.engine import transaction
from app.db.tables import Evaluation, Job
from app.domain.evaluations.graders import CreateEvaluation
from app.services.jobs import evaluations as service
from tests.factories import make_file
from tests.worker.worker_harness import OWNER, WorkerHarness
from worker.evaluations.evaluator import GRADE_COMMAND, Evaluator
from worker.node.slot import try_lock

EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.reference_answer }}",
    "operation": "eq",
}
# A generation in a tenth of a second: the adapter is right on every row, the base on each third one.
GENERATE = """
prompts = [json.loads(line) for line in open(directory / 'prompts.jsonl')]
with open(directory / 'answers.jsonl', 'w') as out:
    print(json.dumps({'device': 'cpu', 'compute_dtype': 'bfloat16'}), file=out)
    for p in prompts:
        for model in ('base', 'adapter'):
            right = model == 'adapter' or p['row'] % 3 == 0
            text = f"it is {p['row']}" if right else 'no'
            print(json.dumps({'row': p['row'], 'model': model, 'text': text, 'tokens': 3, 'is_cut': False}), file=out)
"""


def fake(tmp_path: Path, code: str = GENERATE) -> tuple[str, ...]:
    """A generation program that runs `code`; `directory` is its work directory."""
    program = tmp_path / "fake_generation.py"
    start = "import json, os, signal, sys, time\nfrom pathlib import Path\ndirectory = Path(sys.argv[1])\n"
    program.write_text(start + code)
    return sys.executable, str(program)


def lines(count: int = 12, **extra: Any) -> bytes:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": f"it is {n}"},
            ]
        }
        | {key: value(n) if callable(value) else value for key, value in extra.items()}
        for n in range(count)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


Ask = Callable[..., Evaluation]


@pytest.fixture
def ask(harness: WorkerHarness, trained: Job) -> Ask:
    def ask(content: bytes | None = None, **settings: Any) -> Evaluation:
        with transaction(harness.sessions) as session:
            file = make_file(
                session, harness.resources.storage, harness.project, content or lines(), "evals", "heldout.jsonl"
            )
            request = CreateEvaluation.model_validate({"file": file.id, "graders": [EXACT]} | settings)
            endpoints = harness.resources.settings.endpoints
            return service.create(session, harness.resources.hints, trained, request, endpoints)

    return ask


def evaluator(harness: WorkerHarness, tmp_path: Path, *command: str, grade: Sequence[str] = GRADE_COMMAND) -> Evaluator:
    lock = partial(try_lock, tmp_path / "trainer.lock")
    return Evaluator(harness.resources, OWNER, lock, None, command or fake(tmp_path), grade_command=grade)


def read(harness: WorkerHarness, evaluation: Evaluation) -> Evaluation:
    with transaction(harness.sessions) as session:
        return session.get_one(Evaluation, evaluation.id)


Evaluate = Callable[..., Evaluation]


@pytest.fixture
def evaluate(harness: WorkerHarness, ask: Ask, tmp_path: Path) -> Evaluate:
    """Ask for an evaluation, run it to its end, and return it."""

    def evaluate(
        content: bytes | None = None, code: str = GENERATE, program: Sequence[str] = (),
        grade: Sequence[str] = GRADE_COMMAND, **settings: Any,
    ) -> Evaluation:  # fmt: skip
        evaluation = ask(content, **settings)
        assert evaluator(harness, tmp_path, *(program or fake(tmp_path, code)), grade=grade).run_next()
        return read(harness, evaluation)

    return evaluate
