"""Every variant of LoRA with every quantization: trained as in PEFT, and loaded by PEFT with the same logits."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.jobs.events import Command
from app.domain.jobs.spec import QuantizationSpec
from app.system.artifact_directory import verify
from tests.tiny import make_tiny_base
from tests.trainer import plain_peft
from tests.trainer.helpers import (
    FLOAT32,
    Trainings,
    assert_same_adapter,
    batches_of,
    load_tiny_base,
    make_one_step,
    make_spec,
    no_keepalive,
    prepare,
    save_adapter,
    slow_but,
)
from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.checkpoint.verify import TOLERANCE, verify_adapter
from worker.trainer.data.batch import PackedBatch
from worker.trainer.model.base_model import FrozenBase, hidden_states
from worker.trainer.runtime.failures import Failure
from worker.trainer.training.run import make_objective
from worker.trainer.training.state import Run
from worker.trainer.validation.evaluate import evaluate

EIGHT_BITS = QuantizationSpec(bits=8, compute_dtype="float32")
WIDTHS = {
    "16 bits": None,
    "NF4": FLOAT32,
    "FP4": QuantizationSpec(type="fp4", compute_dtype="float32"),
    "8 bits": EIGHT_BITS,
}
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 2, r"layers\.1\..*(up|down)_proj": 6},
    "alpha_pattern": {"v_proj": 3, "model.layers.0.mlp.down_proj": 1.5},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "patterns": PATTERNS,
    "patterns with rsLoRA": PATTERNS | {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "DoRA with patterns and rsLoRA": PATTERNS | {"use_dora": True, "use_rslora": True},
    "norms": {"modules_to_save": ["norm"]},
    "head": {"modules_to_save": ["lm_head"]},
    "embedding and head": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "DoRA with a head": {"use_dora": True, "modules_to_save": ["lm_head", "model.norm"]},
}
VARIANTS_OF_HEADS = ("head", "embedding and head", "embedding")
STEPS = 5
COMPARED_STEPS = 3  # A has no gradient in the first one, as B is zero
# Each variant that differs in kind and each width is tested always; each variant with one width and each width with
# some variants by `make test-all`, every other pair by `make test-slow`.
PAIRS = list(product(VARIANTS, WIDTHS))
KINDS = ("LoRA", "DoRA with patterns and rsLoRA", "norms", "embedding and head", "DoRA with a head")
KEPT_PAIRS = [*product(KINDS, ["NF4"]), *product(["LoRA"], WIDTHS), ("DoRA", "8 bits")]
MORE_PAIRS = [pair for pair in PAIRS if pair[1] == "NF4" or pair[0] in ("LoRA", "DoRA", "embedding and head")]


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False, attention_bias=False)


@pytest.fixture(autouse=True)
def whole_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft.tuners.lora.dora.dequantize_module_weight", plain_peft.dequantized_in_place)


def started(
    base: Path, examples: Path, quantization: QuantizationSpec | None, **changes: Any
) -> tuple[FrozenBase, Run]:
    loaded = load_tiny_base(base, quantization)
    run = prepare(make_spec(base, examples, quantization=quantization, **changes), loaded, Path("unused"))
    return loaded, run


def trained(
    base: Path, examples: Path, quantization: QuantizationSpec | None, **changes: Any
) -> tuple[FrozenBase, Run]:
    loaded, run = started(base, examples, quantization, **changes)
    for _ in range(STEPS):
        make_one_step(loaded, run)
    return loaded, run


def a_batch(run: Run) -> PackedBatch:
    return batches_of(run, [0], 512)[0]


@torch.no_grad()
def our_logits(base: FrozenBase, batch: PackedBatch, adapter: LoraAdapter | None) -> torch.Tensor:
    return hidden_states(base, batch, adapter) @ base.head_with(adapter).t()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize(("variant", "width"), slow_but(KEPT_PAIRS, PAIRS, MORE_PAIRS))
def test_a_variant_is_trained_as_in_plain_peft_which_loads_it_with_the_same_logits(
    tiny: Path, examples: Path, tmp_path: Path, variant: str, width: str
) -> None:
    changes, quantization = VARIANTS[variant], WIDTHS[width]
    if width == "FP4":  # of which PEFT's own training has no reference here
        base, run = trained(tiny, examples, quantization, **changes)
    else:
        base, run = plain_peft.compare(tiny, examples, quantization, COMPARED_STEPS, **changes)
    batch, directory = a_batch(run), save_adapter(base, run, tmp_path)
    theirs = plain_peft.logits(plain_peft.load(tiny, directory, quantization), batch.tokens_T.tolist())
    assert difference(our_logits(base, batch, run.adapter), our_logits(base, batch, None)) > 0.01
    assert difference(theirs, our_logits(base, batch, run.adapter)) < 1e-4
    assert verify_adapter(base, run, directory) < TOLERANCE / 10


class TestTraining:
    @pytest.mark.parametrize("variant", slow_but(["head"], VARIANTS_OF_HEADS, VARIANTS_OF_HEADS))
    def test_an_untied_head_is_trained_as_in_plain_peft(self, untied: Path, examples: Path, variant: str) -> None:
        plain_peft.compare(untied, examples, FLOAT32, COMPARED_STEPS, **VARIANTS[variant])

    @pytest.mark.parametrize("variant", ["LoRA", "DoRA"])
    def test_layers_with_a_bias_are_trained_as_in_plain_peft(
        self, tmp_path: Path, examples: Path, variant: str
    ) -> None:
        base = make_tiny_base(tmp_path / "biased", attention_bias=True)
        tensors = load_file(base / "model.safetensors")
        for name in [name for name in tensors if "self_attn" in name]:
            tensors[name.removesuffix("weight") + "bias"] = tensors[name][:, 0].clone()
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        plain_peft.compare(base, examples, None, COMPARED_STEPS, **VARIANTS[variant])

    @pytest.mark.parametrize("variant", KINDS)
    def test_step_0_is_the_base_model_which_training_leaves_unchanged_to_the_bit(
        self, tiny: Path, examples: Path, variant: str
    ) -> None:
        base, run = started(tiny, examples, None, **VARIANTS[variant])
        batch = a_batch(run)
        before = our_logits(base, batch, None)
        assert torch.equal(our_logits(base, batch, run.adapter), before)
        for _ in range(2):
            make_one_step(base, run)
        assert torch.equal(our_logits(base, batch, None), before)
        assert not any(parameter.requires_grad for parameter in base.model.parameters())

    @pytest.mark.parametrize("variant", ["DoRA", "embedding and head"])
    def test_the_batch_length_never_changes_the_result_beyond_rounding(
        self, tiny: Path, examples: Path, variant: str
    ) -> None:
        one, other = (started(tiny, examples, FLOAT32, **VARIANTS[variant]) for _ in range(2))
        for _ in range(3):
            few, many = make_one_step(*one, 100).loss, make_one_step(*other, 4096).loss
            assert few == pytest.approx(many, rel=1e-5)


class TestSaved:
    def test_the_files_name_single_layers_and_never_a_pattern(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        base, run = trained(tiny, examples, FLOAT32, **PATTERNS)
        directory = save_adapter(base, run, tmp_path)
        config = json.loads((directory / "adapter_config.json").read_text())
        names = {re.escape(name) for name in base.layers}
        for lora in (config, verify(directory)["lora"]):
            assert (len(lora["rank_pattern"]), len(lora["alpha_pattern"])) == (4, 3)
            assert lora["rank_pattern"].keys() | lora["alpha_pattern"].keys() <= names

    @pytest.mark.parametrize(
        ("variant", "tensor"),
        [("DoRA", "q_proj.lora_magnitude_vector"), ("norms", "norm.weight"), ("head", "lm_head.weight")],
    )
    def test_verification_finds_one_altered_number(
        self, tiny: Path, examples: Path, tmp_path: Path, variant: str, tensor: str
    ) -> None:
        base, run = trained(tiny, examples, FLOAT32, **VARIANTS[variant])
        path = save_adapter(base, run, tmp_path) / "adapter_model.safetensors"
        tensors = load_file(path)
        tensors[next(name for name in tensors if name.endswith(tensor))].view(-1)[0] += 0.01
        save_file(tensors, path)
        with pytest.raises(Failure, match=tensor):
            verify_adapter(base, run, path.parent)

    def test_verification_finds_a_wrong_scale_of_one_layer(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        base, run = trained(tiny, examples, FLOAT32, **PATTERNS)
        path = save_adapter(base, run, tmp_path) / "adapter_config.json"
        right = json.loads(path.read_text())
        for wrong in ({}, {"v_proj": 4}):
            path.write_text(json.dumps(right | {"alpha_pattern": wrong}))
            with pytest.raises(Failure, match="logits differ"):
                verify_adapter(base, run, path.parent)

    def test_validation_uses_the_trained_head_and_answers_of_the_base_do_not(self, tiny: Path, examples: Path) -> None:
        base, run = trained(tiny, examples, FLOAT32, modules_to_save=["lm_head"], validation_file=examples)
        assert run.validation_dataset is not None
        before = evaluate(make_objective(base, run), run.validation_dataset, 512, no_keepalive).loss
        with torch.no_grad():
            run.adapter.module_masters["lm_head.weight"].mul_(3)
        assert evaluate(make_objective(base, run), run.validation_dataset, 512, no_keepalive).loss != before


@pytest.mark.extended("exact resume of each variant; test_exact_resume has one")
class TestResume:
    @pytest.mark.parametrize(
        "changes",
        [
            {"use_dora": True, "dropout": 0.2},
            {"modules_to_save": ["lm_head", "embed_tokens", "norm"], "dropout": 0.2},
            {"use_dora": True, "modules_to_save": ["lm_head"]} | PATTERNS,
            {"quantization": {"bits": 8}},
            {"optimizer": "adamw_8bit", "r": 32},
        ],
        ids=["DoRA", "whole modules", "both, with patterns", "8 bits", "moments in 8 bits"],
    )
    def test_an_interrupted_run_has_the_same_result_to_the_bit(self, train: Trainings, changes: dict[str, Any]) -> None:
        changes = {"quantization": {}} | changes
        whole = train(**changes)
        snapshot = train(stop_at=(4, Command.DRAIN), **changes).snapshot
        assert_same_adapter(train(resume_from=snapshot, **changes), whole)
