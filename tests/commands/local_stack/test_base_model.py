"""The bundled model, converted for real: about ten seconds."""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from app.cli.local_stack import first_run
from app.system import model_files
from tests.commands.local_stack.support import REPOSITORY

pytestmark = pytest.mark.skipif(first_run.missing_dependency() is not None, reason=str(first_run.missing_dependency()))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    child = first_run.conversion_process(
        place / first_run.BUNDLED_MODEL, place / "log", place, {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    child.start()
    assert first_run.BUNDLED_PACKAGE not in sys.modules  # whose import fails without `llm`
    assert child.wait(120)
    assert child.exit_code == 0, (place / "log").read_text()
    assert sorted(path.name for path in place.iterdir()) == [first_run.BUNDLED_MODEL, "log"]
    return place / first_run.BUNDLED_MODEL


@pytest.mark.extended("another load of the bundled base")
def test_the_converted_model_may_be_registered(converted: Path) -> None:
    entry = model_files.read_catalog_entry(converted)
    assert (entry.parameters, entry.context_length, entry.has_chat_template) == (134_515_008, 8192, True)
    assert sorted(entry.target_modules) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip


def test_converted_weights_are_bfloat16_and_the_same_in_every_conversion(converted: Path) -> None:
    """The hash goes into each adapter's manifest, so a second machine must come to the same bytes."""
    weights = (converted / "model.safetensors").read_bytes()
    assert len(weights) == 269_060_552
    assert zlib.crc32(weights) == 1276029904


def test_the_converted_tokenizer_loads_and_splits_digits(converted: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    assert tokenizer.encode("Hello 123").tokens == ["Hello", "Ġ", "1", "2", "3"]
    assert tokenizer.encode("<|im_start|>user").ids[0] == 1
