"""The report on a file, the validation of a job and the trainer read a dataset in the same way."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from app.domain.datasets.profile import ProfileLimits, profile_dataset
from app.domain.datasets.render import Renderer
from app.domain.datasets.report import build_report
from app.domain.jobs.spec import DataParameters
from app.domain.jobs.states import Reason
from app.domain.methods import MethodName
from app.system.tokenizer_files import load_renderer
from tests.factories import chat_lines
from tests.tiny import make_tiny_base, make_tiny_dataset, make_tiny_pairs
from worker.trainer.data.batch import read_dataset

CONTEXT_LENGTH = 48


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(make_tiny_base(tmp_path_factory.mktemp("survey") / "base"))


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def files(directory: Path) -> dict[str, tuple[MethodName, bytes]]:
    bad = lines({"messages": []}, {"text": "x"}) + b"no json\n\n"
    return {
        "chat": ("supervised", make_tiny_dataset(directory / "chat.jsonl", 30).read_bytes()),
        "chat with bad lines": ("supervised", chat_lines(12) + bad + chat_lines(3)),
        "completions": ("supervised", lines(*({"prompt": "a" * n, "completion": "b"} for n in range(1, 80, 7)))),
        "texts": ("supervised", lines(*({"text": "word " * n} for n in range(1, 60, 5)))),
        "pairs": ("dpo", make_tiny_pairs(directory / "pairs.jsonl", 30).read_bytes()),
        "nothing": ("supervised", b""),
    }


NAMES = ("chat", "chat with bad lines", "completions", "texts", "pairs", "nothing")


@pytest.mark.parametrize("name", NAMES)
def test_the_counts_are_those_of_validation(renderer: Renderer, tmp_path: Path, name: str) -> None:
    method, content = files(tmp_path)[name]
    parameters = DataParameters(method=method, context_length=CONTEXT_LENGTH)
    limits = ProfileLimits(4096)
    found = profile_dataset(renderer, parameters, limits, io.BytesIO(content)).report
    wanted = build_report(renderer, parameters, 4096, io.BytesIO(content))
    assert found.counts() == wanted.counts()
    assert (found.cut, found.empty) == (wanted.cut, wanted.empty)
    assert (found.masked, found.findings, found.finding_count) == (wanted.masked, wanted.findings, wanted.finding_count)
    assert found.lengths.tokens == wanted.lengths.tokens


@pytest.mark.parametrize("name", NAMES[:-1])
def test_the_rows_shown_are_what_the_trainer_trains(renderer: Renderer, tmp_path: Path, name: str) -> None:
    method, content = files(tmp_path)[name]
    parameters = DataParameters(method=method, context_length=CONTEXT_LENGTH)
    if name == "chat with bad lines":
        content = chat_lines(15)  # the trainer never meets a bad line: validation has failed the job
    (tmp_path / "data.jsonl").write_bytes(content)
    found = profile_dataset(renderer, parameters, ProfileLimits(1 << 20, preview_rows=50), io.BytesIO(content))
    shown = [document for row in found.previews if row["trained"] for document in row["documents"]]
    reason = Reason.INVALID_TRAINING_FILE
    dataset = read_dataset(renderer, tmp_path / "data.jsonl", parameters, reason, lambda _: None)
    documents = [
        dataset.tokens_and_labels(number) for example in range(len(dataset)) for number in dataset.documents(example)
    ]
    trained = [list(zip(tokens, map(bool, labelled), strict=True)) for tokens, labelled in documents]
    assert [tokens_of(document) for document in shown] == trained


def tokens_of(document: dict[str, Any]) -> list[tuple[int, bool]]:
    return [(token, segment["trained"]) for segment in document["segments"] for token in segment["token_ids"]]
