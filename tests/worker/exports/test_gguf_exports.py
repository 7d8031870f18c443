"""GGUF exports with llama.cpp's own converter, quantizer and library, of a small random model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from app.cli.local_stack.first_run import gguf_file
from app.db.base_models import models
from app.db.engine import transaction
from app.db.tables import Job
from app.domain.artifacts.exports import ExportType
from app.system import model_files
from app.system.artifact_directory import verify
from tests.commands.trained import make_trained_job
from tests.tiny import make_tiny_base
from tests.worker.exports.test_exporter import ask, download, exporter, read, write_real_adapter
from tests.worker.worker_harness import WorkerHarness
from worker.exports import COMMANDS, supported_types
from worker.trainer.gguf import answers as answers_module
from worker.trainer.gguf.answers import DifferentAnswers, GreedyAnswer, compare, greedy_answers, require_effect
from worker.trainer.gguf.converter import CannotConvert, convert_adapter, convert_model
from worker.trainer.gguf.llama_cpp import LlamaCppError, LlamaCppModel
from worker.trainer.merge import merge

THREADS = 1
QUESTIONS = answers_module.QUESTIONS[:3]


@pytest.fixture(scope="module")
def known_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with SmolLM2's tokenizer: llama.cpp's converter refuses tokenizers that it does not know."""
    directory = tmp_path_factory.mktemp("known") / "base"
    source = gguf_file()
    assert source is not None
    reader = gguf.GGUFReader
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.cache(reader))  # transformers reads the file twice
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def adapter(known_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_real_adapter(known_base)(tmp_path_factory.mktemp("known-adapter") / "adapter", 4)


@pytest.fixture(scope="module")
def merged_answers(known_base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> list[GreedyAnswer]:
    directory = tmp_path_factory.mktemp("known-merged") / "merged"
    merge(known_base, adapter, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers_module, "QUESTIONS", QUESTIONS)
        return greedy_answers(directory)


@pytest.fixture(scope="module")
def base_gguf(known_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("known-gguf") / "base.gguf"
    convert_model(known_base, path, "f16")
    return path


@pytest.fixture
def known_job(harness: WorkerHarness, known_base: Path, tmp_path: Path) -> Job:
    with transaction(harness.sessions) as session:
        entry = model_files.read_catalog_entry(known_base)
        models.register(session, "tiny", known_base, *model_files.hash_directory(known_base), entry)
        write = write_real_adapter(known_base)
        return make_trained_job(session, harness.resources.storage, harness.project, tmp_path / "made", write)


class TestWorker:
    @pytest.mark.extended("merges, converts and answers with llama.cpp and transformers")
    @pytest.mark.parametrize(
        ("body", "names"),
        [
            ({"type": "gguf", "quantization": "Q4_K_M"}, {"model-Q4_K_M.gguf", "Modelfile"}),
            ({"type": "gguf_adapter"}, {"adapter.gguf"}),
        ],
        ids=["model", "adapter"],
    )
    def test_the_file_is_compared_with_the_merged_model_before_it_is_published(
        self, harness: WorkerHarness, known_job: Job, tmp_path: Path, body: dict[str, Any], names: set[str]
    ) -> None:
        export = ask(harness, known_job, **body)
        assert exporter(harness, tmp_path, *COMMANDS[ExportType(body["type"])]).run_next()
        finished = read(harness, export)
        assert (finished.state, finished.error_message) == ("succeeded", None)
        directory = download(harness, finished, tmp_path / "downloaded")
        assert {path.name for path in directory.iterdir()} == names | {"README.md", "MANIFEST.json"}
        check = verify(directory)["gguf"]["check"]
        assert check["same_most_likely_token"] >= check["required"] > 0.5
        assert check["tokens"] == 192
        assert finished.size_bytes < finished.expected_bytes * 1.3

    def test_a_worker_without_llama_cpp_leaves_gguf_exports_to_others(
        self, harness: WorkerHarness, known_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert supported_types() == tuple(ExportType)
        monkeypatch.setattr("worker.exports.find_spec", lambda name: None if name == "llama_cpp_py_sync" else "found")
        assert supported_types() == (ExportType.MERGED,)


class TestCheck:
    @pytest.mark.extended("merges, converts and answers with llama.cpp and transformers")
    def test_an_adapter_counts_only_with_its_effect(
        self, known_base: Path, adapter: Path, base_gguf: Path, merged_answers: list[GreedyAnswer], tmp_path: Path
    ) -> None:
        convert_adapter(adapter, known_base, tmp_path / "adapter.gguf")
        with LlamaCppModel(base_gguf, tmp_path / "adapter.gguf", 1024, THREADS) as model:
            figures = require_effect(compare(model, merged_answers, "F16"), merged_answers, known_base)
        assert figures["mean_logprob_difference"] < 0.1 * figures["mean_effect_of_adapter"]
        with LlamaCppModel(base_gguf, None, 1024, THREADS) as model, pytest.raises(DifferentAnswers):
            require_effect(compare(model, merged_answers, "F16"), merged_answers, known_base)

    @pytest.mark.extended("logits of an export beside its tensors")
    def test_logits_are_those_of_transformers(self, known_base: Path, base_gguf: Path) -> None:
        tokens = [1, 504, 3575, 282, 4649]
        model: Any = AutoModelForCausalLM.from_pretrained(known_base, dtype=torch.float32)
        with torch.inference_mode():
            expected = model(torch.tensor([tokens])).logits[0].numpy()
        with LlamaCppModel(base_gguf, None, 64, THREADS) as loaded:
            assert loaded.vocabulary_size == expected.shape[1]
            ours = loaded.logits(tokens, start=0)
            assert np.array_equal(loaded.logits(tokens, start=3), ours[3:])  # nothing is left of the call before
        assert np.abs(ours - expected).max() < 0.02 * np.abs(expected).max()

    def test_another_division_into_tokens_is_refused(self, base_gguf: Path, merged_answers: list[GreedyAnswer]) -> None:
        first = merged_answers[0]
        other = GreedyAnswer(
            first.prompt, first.prompt_tokens[1:], first.answer_tokens, first.most_likely, first.logprobs
        )
        with LlamaCppModel(base_gguf, None, 1024, THREADS) as model, pytest.raises(DifferentAnswers, match="divides"):
            compare(model, [other], "F16")


class TestRefusals:
    def test_a_file_that_is_no_model_is_refused_with_llama_cpps_words(self, tmp_path: Path) -> None:
        (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
        with pytest.raises(LlamaCppError, match=r"broken\.gguf: .+"):
            LlamaCppModel(tmp_path / "broken.gguf", None, 64, THREADS)

    @pytest.mark.extended("another start of the real program")
    def test_an_unknown_tokenizer_is_refused_with_the_converters_words(self, tmp_path: Path) -> None:
        with pytest.raises(CannotConvert, match="pre-tokenizer"):
            convert_model(make_tiny_base(tmp_path / "base"), tmp_path / "out.gguf", "f16")
