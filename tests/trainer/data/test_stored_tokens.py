"""The stored tokens of a file are those that the trainer would make; those of anything else are not used."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from app.domain.datasets import stored_tokens
from app.domain.datasets.render import Renderer
from app.domain.datasets.stored_tokens import read_and_store
from app.domain.datasets.template_arguments import ChatTemplateArguments
from app.domain.jobs.spec import DataParameters, TokensFile
from app.domain.jobs.states import Reason
from app.domain.methods import MethodName
from app.system.artifact_directory import sha256_file
from app.system.limited_rendering import LimitedRenderer
from app.system.tokenizer_files import load_renderer
from tests.tiny import make_tiny_base, make_tiny_dataset, make_tiny_labelled, make_tiny_pairs
from tests.trainer.helpers import Trainings
from worker.trainer.data.batch import TokenizedDataset, read_dataset

NOW = datetime(2026, 7, 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("stored") / "base")


def make_file(path: Path, method: MethodName) -> Path:
    makers: dict[str, Any] = {"supervised": make_tiny_dataset, "kto": make_tiny_labelled}
    made: Path = makers.get(method, make_tiny_pairs)(path / "data.jsonl", 30)
    return made


def store(renderer: Renderer, file: Path, parameters: DataParameters) -> TokensFile:
    """Store the tokens of a file as its validation does."""
    sha256 = sha256_file(file)
    with file.open("rb") as opened:
        pieces = list(read_and_store(renderer, parameters, 1 << 20, None, sha256, opened))
    path = file.with_suffix(".tokens")
    path.write_bytes(b"".join(piece for piece in pieces if isinstance(piece, bytes)))
    return TokensFile(path=path, sha256=sha256_file(path), dataset_sha256=sha256)


def read(renderer: Renderer, file: Path, parameters: DataParameters, stored: TokensFile | None) -> TokenizedDataset:
    return read_dataset(renderer, file, parameters, Reason.INVALID_TRAINING_FILE, lambda _: None, stored)


@pytest.fixture
def tokenizes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each time that a file is rendered."""
    calls: list[str] = []
    lines = Renderer.lines
    monkeypatch.setattr(Renderer, "lines", lambda *args: calls.append("lines") or lines(*args))
    return calls


@pytest.mark.parametrize("method", ["supervised", "dpo", "orpo", "kto"])
def test_the_stored_tokens_are_the_trainers_own(
    base: Path, tmp_path: Path, tokenizes: list[str], monkeypatch: pytest.MonkeyPatch, method: MethodName
) -> None:
    renderer, file = load_renderer(base), make_file(tmp_path, method)
    parameters = DataParameters(method=method, context_length=48)
    monkeypatch.setattr(stored_tokens, "BLOCK_TOKENS", 200)  # several blocks
    stored = store(renderer, file, parameters)
    made = read(load_renderer(base), file, parameters, stored)
    assert tokenizes == []
    assert vars(made) == vars(read(renderer, file, parameters, None))
    assert stored.path.stat().st_size < 6 * made.tokens + 30 * len(made) + 4_000


def test_tokens_of_anything_else_are_not_used(base: Path, tmp_path: Path, tokenizes: list[str]) -> None:
    (prints_time := tmp_path / "prints-time").mkdir()
    for path in base.iterdir():
        (prints_time / path.name).write_bytes(path.read_bytes())
    template = prints_time / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d') }}" + template.read_text())
    file, parameters = make_file(tmp_path, "supervised"), DataParameters(context_length=48)
    with_arguments = parameters.model_copy(
        update={"chat_template_kwargs": ChatTemplateArguments(enable_thinking=False)}
    )
    stored = store(load_renderer(base, NOW), file, parameters)
    content = stored.path.read_bytes()

    def altered(content: bytes, sha256: str | None = None) -> TokensFile:
        path = tmp_path / f"{len(content)}.tokens"
        path.write_bytes(content)
        return stored.model_copy(update={"path": path, "sha256": sha256 or hashlib.sha256(content).hexdigest()})

    later = datetime(2026, 7, 2)
    cases: dict[str, tuple[Path, datetime, DataParameters, TokensFile, bool]] = {
        "the same": (base, NOW, parameters, stored, True),
        "another time, which the template does not print": (base, later, parameters, stored, True),
        "another template": (prints_time, NOW, parameters, stored, False),
        "another context length": (base, NOW, parameters.model_copy(update={"context_length": 47}), stored, False),
        "other arguments": (base, NOW, with_arguments, stored, False),
        "another file": (base, NOW, parameters, stored.model_copy(update={"dataset_sha256": "0" * 64}), False),
        "an altered byte": (base, NOW, parameters, altered(content[:-1] + b"\2", stored.sha256), False),
        "a cut file": (base, NOW, parameters, altered(content[:-1]), False),
    }
    for name, (directory, now, data, tokens, are_used) in cases.items():
        tokenizes.clear()
        read(load_renderer(directory, now), file, data, tokens)
        assert (tokenizes == []) == are_used, name

    printed = store(load_renderer(prints_time, NOW), file, parameters)
    for now, are_used in ((NOW, True), (later, False)):
        tokenizes.clear()
        read(load_renderer(prints_time, now), file, parameters, printed)
        assert (tokenizes == []) == are_used, now


def test_the_adapter_is_the_same(train: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(max_steps=2)
    (copy := tmp_path / "copy.jsonl").write_bytes(train.training_file.read_bytes())
    stored = store(load_renderer(train.base), copy, train.spec().run.data_parameters)
    monkeypatch.setattr(LimitedRenderer, "lines", lambda *_: pytest.fail("the file is tokenized"))
    fast = train(max_steps=2, training_tokens=stored)
    adapters = [(log.result / "adapter_model.safetensors").read_bytes() for log in (plain, fast)]
    assert adapters[0] == adapters[1]
