"""What vLLM makes of the adapters of every architecture, with its own classes and without an engine.

A tiny base is trained for one step, and merged. The change of each weight that vLLM finds in the merged model must be
that of the adapter in vLLM, or a rule names what differs.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from app.domain.artifacts.engines import (
    VLLM_CLASSES_WITHOUT_LORA,
    Engine,
    LoadResult,
    class_features,
    incompatibilities,
)
from app.domain.jobs.layer_patterns import expand_patterns
from app.domain.jobs.spec import LoraSpec
from tests.trainer.helpers import CPU_KERNELS, make_spec, run_trainer, write_answers
from tests.trainer.model.bases import BASES, EXPERTS, make_model
from worker.trainer.merge import merge
from worker.trainer.model.base_model import load_base

PROGRAM = Path(__file__).parent / "vllm_lora.py"
# Bases beside the table of docs/reference/base-models.md: those whose layers have other names, or are fused.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GLM": ("GlmForCausalLM", {}),
    "GPT-NeoX": ("GPTNeoXForCausalLM", {}),
    "Granite MoE, shared": (
        "GraniteMoeSharedForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
    ),
    "OPT": ("OPTForCausalLM", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "Qwen2-MoE": ("Qwen2MoeForCausalLM", EXPERTS | {"shared_expert_intermediate_size": 64}),
    "StarCoder": ("GPTBigCodeForCausalLM", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
}
MODELS = {name: (class_name, changes) for name, (_, class_name, changes) in BASES.items()} | OTHERS
PATTERNS = {"rank_pattern": {r"(layers|h)\.1\..*": 4}, "alpha_pattern": {r"(layers|h)\.0\..*": 5.0}}

pytestmark = pytest.mark.timeout(900)  # on a busy machine


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, LoraSpec]]:
    """Directories with `base`, `adapter` and `merged`, and the settings of each adapter."""
    directory = tmp_path_factory.mktemp("adapters")
    training_file = write_answers(tmp_path_factory.mktemp("data") / "train.jsonl", 4, "red ")
    return directory, {name: train(name, directory / name, training_file) for name in MODELS}


def train(name: str, directory: Path, training_file: Path) -> LoraSpec:
    base = make_model(*MODELS[name], directory / "base", torch.float32)
    layers = load_base("tiny", base, None, torch.float32, CPU_KERNELS).adaptable_layers
    targets = sorted({layer.rpartition(".")[2] for layer in layers})
    spec = make_spec(base, training_file, target_modules=targets, r=8, n_epochs=1, use_rslora=True)
    sizes = {layer: (each.base.out_features, each.base.in_features) for layer, each in layers.items()}
    lora = expand_patterns(spec.run.lora.model_copy(update=PATTERNS), sizes)
    spec = spec.model_copy(update={"runs": (spec.run.model_copy(update={"lora": lora}),)})
    code, log = run_trainer(spec, directory / "work")
    assert code == 0, log.last
    (directory / "work" / str(log.last.directory)).rename(directory / "adapter")
    merge(base, directory / "adapter", directory / "merged")
    return lora


@pytest.fixture(scope="module")
def found(adapters: tuple[Path, dict[str, LoraSpec]]) -> dict[str, Any]:
    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    classes = VLLM_CLASSES_WITHOUT_LORA.union(each.__name__ for mapping in mappings for each in mapping.values())
    command = [os.environ["TUNERY_VLLM_PYTHON"], PROGRAM, adapters[0], *sorted(classes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def result(outcome: dict[str, Any]) -> LoadResult | None:
    if "refused" in outcome:
        return LoadResult.REFUSED
    return LoadResult.WRONG if outcome["different"] else None


def test_vllm_serves_the_adapters_that_the_rules_say_and_each_changes_what_its_merged_model_changes(
    adapters: tuple[Path, dict[str, LoraSpec]], found: dict[str, Any]
) -> None:
    expected, present = {}, {}
    for name, lora in adapters[1].items():
        class_name = MODELS[name][0]
        problems = incompatibilities(Engine.VLLM, lora, class_features(class_name, [class_name], lora.target_modules))
        expected[name] = next((problem.rule.result for problem in problems), None)
        present[name] = result(found["bases"][name])
        print(name, json.dumps(found["bases"][name]))
    assert present == expected


def test_the_classes_without_lora_are_those_of_vllm(found: dict[str, Any]) -> None:
    assert set(found["without_lora"]) == VLLM_CLASSES_WITHOUT_LORA
