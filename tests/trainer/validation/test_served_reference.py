"""What the trainer records for the check of an engine: 16-bit log-probabilities of the original weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.domain.datasets.documents import Document
from app.domain.deliveries.served_check import ServedPrompt, ServedReference, Verdict, judge
from app.domain.jobs.events import Message, ServedReferenceMeasured
from app.system.model_files import linear_layers
from app.system.tokenizer_files import load_renderer
from tests.trainer.helpers import FLOAT32, make_spec, run_trainer, set_row_tokens
from worker.trainer.data.batch import TokenizedDataset
from worker.trainer.model.frozen_linear import StoredLinear
from worker.trainer.runtime import records
from worker.trainer.training import shared_work
from worker.trainer.validation import served_reference

NF4 = {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "float32"}


@pytest.fixture
def shortened() -> None:
    """Whole runs."""


def train(tiny: Path, examples: Path, workdir: Path, **settings: Any) -> tuple[ServedReference, Path]:
    """(what was recorded, the adapter's directory)."""
    spec = make_spec(tiny, examples, n_epochs=4, batch_size=4, **settings)
    code, log = run_trainer(spec, workdir)
    assert code == 0, log.last
    (record,) = [each for each in log.records if isinstance(each, ServedReferenceMeasured)]
    return record.reference, workdir / str(log.last.directory)


def with_transformers(tiny: Path, adapter: Path, reference: ServedReference) -> list[ServedPrompt]:
    """What an engine would return: the original weights in 16 bits, by transformers and PEFT."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    tuned = PeftModel.from_pretrained(model, adapter).eval()

    @torch.no_grad()
    def scores(tokens: list[int], positions: list[int]) -> tuple[list[float], list[int]]:
        logits_T_V = tuned(torch.tensor([tokens])).logits[0].float()
        at = torch.tensor(positions) - 1
        logprobs = logits_T_V[at].log_softmax(dim=1)
        expected = torch.tensor([tokens[position] for position in positions])
        return logprobs.gather(1, expected[:, None])[:, 0].tolist(), logits_T_V[at].argmax(dim=1).tolist()

    found = []
    for prompt in reference.prompts:
        adapter_scores, top = scores(prompt.tokens, prompt.positions)
        with tuned.disable_adapter():
            base_scores, _ = scores(prompt.tokens, prompt.positions)
        found.append(ServedPrompt(base_scores, adapter_scores, top))
    return found


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT, of transformers
@pytest.mark.parametrize("quantization", [FLOAT32, NF4], ids=["not quantized", "nf4"])
def test_the_reference_is_what_transformers_computes_in_16_bits_with_the_original_weights(
    tiny: Path, examples: Path, tmp_path: Path, quantization: dict[str, Any]
) -> None:
    reference, adapter = train(tiny, examples, tmp_path, quantization=quantization, r=8, alpha=64)
    check = judge(reference, with_transformers(tiny, adapter, reference))
    assert check.trainer_effect > 4 * reference.noise > 0
    assert check.engine_effect == pytest.approx(check.trainer_effect, rel=0.05)
    assert check.difference <= 4 * reference.noise
    assert check.verdict in (Verdict.SAME, Verdict.UNCLEAR)  # top-1 of a random model is near a tie everywhere


def test_each_layer_of_the_passes_before_and_after_the_training_is_a_sign_of_progress(
    tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog kills a trainer after 600 s without a record, and a layer of a large base is read from a file.

    That file is read once, for three computations of several batches.
    """
    monkeypatch.setattr(records, "KEEPALIVE_SECONDS", 0.0)
    monkeypatch.setattr(served_reference, "MAX_PROMPT_TOKENS", 40)
    monkeypatch.setattr(shared_work, "MAX_PROMPT_TOKENS", 40)
    set_row_tokens(monkeypatch, 40)
    read = Counter[str]()
    weight_of = StoredLinear._read

    def read_weight(layer: Any) -> torch.Tensor:
        read[layer._key] += 1
        return weight_of(layer)

    monkeypatch.setattr(StoredLinear, "_read", read_weight)
    code, log = run_trainer(make_spec(tiny, examples, n_epochs=1, quantization=NF4), tmp_path)
    assert code == 0, log.last
    beats = Counter(each.message.split()[1] for each in log.of(Message))
    layers = len(linear_layers(tiny))  # without the head, which is that of the embedding
    assert min(beats["loading"], beats["checking"]) > layers
    assert beats["recording"] > 3 * layers
    assert (len(read), set(read.values())) == (layers, {1})


def test_the_validation_file_is_preferred_and_every_answer_has_its_tokens(
    tiny: Path, examples: Path, tmp_path: Path
) -> None:
    reference, _ = train(tiny, examples, tmp_path, quantization=FLOAT32, validation_file=examples)
    assert (reference.source, reference.dtype) == ("validation_file", "bfloat16")
    assert 0 < len(reference.prompts) <= 16
    for prompt in reference.prompts:
        assert len(prompt.positions) == len(prompt.base) == len(prompt.adapter) == len(prompt.top)
        assert 0 < prompt.positions[0] <= prompt.positions[-1] < len(prompt.tokens) <= 512
        assert prompt.messages is not None  # of which a chat API makes the same tokens
        renderer = load_renderer(tiny)
        assert renderer.encode(renderer.text(prompt.messages, prompt=True)) == prompt.tokens[: prompt.positions[0]]
        assert 0 < len(prompt.answer) <= len(prompt.positions)


def test_at_most_16_prompts_of_at_most_512_tokens_are_chosen() -> None:
    """An expected token behind them counts for nothing."""
    dataset = TokenizedDataset()
    for line in range(1, 21):
        first_label = 600 if line == 1 else 511
        dataset.add(line, [Document(line, [7] * 700, [position >= first_label for position in range(700)])])
    chosen = served_reference._choose(dataset)
    assert [len(chosen.documents(example)) for example in range(len(chosen))] == [1] * 16
    assert (chosen.tokens, chosen.labelled_tokens, list(chosen.lines)) == (16 * 512, 16, list(range(2, 18)))
