"""Each job of a generation is trained once, all are queued at the start; the strict client reads the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from material import LORA, QUANTIZATION, Created, chats, lines, pairs, silent, with_tools
from world import MODEL, connect


@pytest.fixture(scope="session")
def default() -> Iterator[openai.OpenAI]:
    with connect() as client:
        yield client


@pytest.fixture(scope="session", params=["default", "strict"])
def client(request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    """As it is, and in the mode that validates every answer."""
    with connect(_strict_response_validation=request.param == "strict") as client:
        yield client


@pytest.fixture(scope="session")
def training_file(default: openai.OpenAI) -> str:
    return default.files.create(file=("ten.jsonl", lines(chats(10))), purpose="fine-tune").id


@pytest.fixture(scope="session", autouse=True)
def jobs(default: openai.OpenAI, training_file: str) -> Created:
    upload = default.files.create
    create = default.fine_tuning.jobs.create
    validation = upload(file=("valid.jsonl", lines(chats(6, start=100))), purpose="fine-tune")
    short: Any = {"type": "supervised", "supervised": {"hyperparameters": {"max_steps": 4}}}
    dpo: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1, "batch_size": 4}}}
    main = create(
        model=MODEL,
        training_file=training_file,
        validation_file=validation.id,
        suffix="main",
        seed=7,
        metadata={"scenario": "main"},
        extra_body={"lora": LORA, "quantization": QUANTIZATION},
    )
    plain = create(model=MODEL, training_file=training_file, method=short)
    preferences = upload(file=lines(pairs(12)), purpose="fine-tune")
    masked = upload(file=lines([*with_tools(11), silent(11)]), purpose="fine-tune")
    return Created(
        main=main.id,
        plain=plain.id,
        dpo=create(model=MODEL, training_file=preferences.id, method=dpo).id,
        masked=create(model=MODEL, training_file=masked.id, method=short).id,
    )
