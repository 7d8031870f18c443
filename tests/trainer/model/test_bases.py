"""Every architecture that people fine-tune, as a tiny random model: as plain transformers and PEFT compute it.

`make test` runs one representative of each kind; `make test-bases` runs all of them and prints the table of docs.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from app.domain.jobs.events import Done
from app.domain.jobs.spec import DataParameters, LoraSpec, QuantizationSpec
from app.domain.jobs.states import Reason
from app.system.tokenizer_files import load_renderer
from tests.trainer.helpers import CPU_KERNELS, make_spec, run_trainer
from tests.trainer.model.bases import BASES, REPRESENTATIVES, make_base
from worker.trainer.adapter.lora import LoraAdapter, make_adapter
from worker.trainer.data.batch import TokenizedDataset, pack_batches, read_dataset
from worker.trainer.model.base_check import check_base
from worker.trainer.model.base_model import FrozenBase, load_base
from worker.trainer.objective.objective import SupervisedObjective

IS_COMPLETE = bool(os.environ.get("TUNERY_ALL_BASES"))
NAMES = tuple(BASES) if IS_COMPLETE else REPRESENTATIVES
TRAINED_FORMATS = ("nf4", "16 bits") if IS_COMPLETE else ("nf4",)
MAX_LOSS_DIFFERENCE = {"float32": 1e-4, "nf4": 1e-4, "16 bits": 2e-2, "nf4, 16 bits": 2e-2}
MAX_GRADIENT_DIFFERENCE = 5e-2  # of the norm
# In 16 bits transformers' own gradient may be further from that in float32: then ours may be as far. Rounding may also
# give a token other experts, and with a hundred tokens one of them changes the gradient by a tenth.
OWN_DIFFERENCES = 1.5
MAX_DIFFERENCE_OF_ROUTED = 0.2
FORMATS: dict[str, tuple[QuantizationSpec | None, torch.dtype]] = {
    "float32": (None, torch.float32),
    "nf4": (QuantizationSpec(compute_dtype="float32"), torch.float32),
    "16 bits": (None, torch.bfloat16),
    "nf4, 16 bits": (QuantizationSpec(), torch.bfloat16),  # the default of a job
}
STEPS = 30
STACKED = ["experts.down_proj", "experts.gate_up_proj"]
TEXTS = (("red green", "blue amber green"), ("one", "two three"), ("amber blue", "red red"), ("nine", "ten eleven"))


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, str]]]:
    """Figures by base and column; printed at the end of `make test-bases`."""
    rows: dict[str, dict[str, str]] = {name: {} for name in NAMES}
    yield rows
    if IS_COMPLETE:
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines = [["base", "class", *columns], ["---"] * (len(columns) + 2)]
        lines += [[name, f"`{BASES[name][1]}`", *(row.get(key, "") for key in columns)] for name, row in rows.items()]
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("", *(f"| {' | '.join(line)} |" for line in lines), sep="\n")


@pytest.fixture(scope="session", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def directory(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(name, tmp_path_factory.mktemp("base") / name.replace(" ", "-"))


@pytest.fixture(scope="session")
def training_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bases") / "train.jsonl"
    lines = (
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in TEXTS
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@dataclass
class Plain:
    """transformers' model with the weights that the base has, one document at a time."""

    model: Any
    dataset: TokenizedDataset

    def loss_sum(self) -> torch.Tensor:
        losses = []
        for document in range(len(self.dataset)):
            tokens, labels = (torch.tensor(list(part)) for part in self.dataset.tokens_and_labels(document))
            logits = self.model(input_ids=tokens.long()[None]).logits[0, :-1].float()
            losses.append(F.cross_entropy(logits, tokens[1:].long(), reduction="none")[labels[1:].bool()].sum())
        return torch.stack(losses).sum()

    def backward(self) -> float:
        loss = self.loss_sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """By PEFT's names in adapter_model.safetensors."""
        return {name.replace(".default", ""): p for name, p in self.model.named_parameters() if p.requires_grad}


def plain_model(base: FrozenBase) -> Any:
    """Load with transformers, in float32, and replace quantized weights by the dequantized ones."""
    name = json.loads((base.directory / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(
        base.directory, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        for layer_name, layer in base.layers.items():
            model.get_submodule(layer_name).weight.copy_(layer.base.weight_in(torch.float32))
        for parameter_name, stack in base.experts.items():
            stacked = stack.weights_in(torch.float32)
            parameter = model.get_parameter(parameter_name)
            parameter.copy_(stacked if parameter.shape == stacked.shape else stacked.transpose(1, 2))
    return model.eval()


def targets(base: FrozenBase) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in base.adaptable})


@pytest.mark.extended("every architecture; the oracle's tests have one")
@pytest.mark.parametrize("weights", FORMATS)
def test_the_first_loss_and_gradient_are_those_of_transformers_and_peft(
    directory: Path, training_file: Path, weights: str, name: str, table: dict[str, dict[str, str]]
) -> None:
    base = load_base("tiny", directory, *FORMATS[weights], CPU_KERNELS)
    check_base(base)
    lora = _lora(base)
    dataset = read_dataset(
        load_renderer(directory),
        training_file,
        DataParameters(context_length=512),
        Reason.INVALID_TRAINING_FILE,
        lambda _: None,
    )
    batch = next(pack_batches(dataset, dataset.documents_of(range(len(dataset))), 4096))
    adapter = _with_effect(make_adapter(lora, 0, base.adaptable_layers, CPU_KERNELS, base.experts))
    ours = SupervisedObjective(base, adapter).forward_backward(batch).losses_E.sum().item()
    exact, rounded = (
        Plain(_peft_model(base, lora, adapter).to(dtype), dataset) for dtype in (torch.float32, FORMATS[weights][1])
    )
    loss = exact.backward()
    assert ours == pytest.approx(loss, rel=MAX_LOSS_DIFFERENCE[weights])
    rounded.backward()
    gradient = _gradient(adapter.named_parameters())
    expected, in_16_bits = _gradient(exact.trained), _gradient(rounded.trained)
    own_difference = float((in_16_bits - expected).norm() / expected.norm())
    difference = float((gradient - expected).norm() / expected.norm())
    table[name][f"loss, {weights}"] = f"{abs(ours / loss - 1):.0e}"
    table[name][f"gradient, {weights}"] = f"{difference:.0e}"
    is_routed = base.experts and base.compute_dtype != torch.float32
    limit = MAX_DIFFERENCE_OF_ROUTED if is_routed else MAX_GRADIENT_DIFFERENCE
    assert difference < max(limit, OWN_DIFFERENCES * own_difference)


@pytest.mark.extended("trains a tiny model of each architecture")
@pytest.mark.parametrize("weights", TRAINED_FORMATS)
def test_a_fixed_text_is_learned_and_the_adapter_verified(
    directory: Path, training_file: Path, tmp_path: Path, weights: str, name: str, table: dict[str, dict[str, str]]
) -> None:
    base = load_base("tiny", directory, None, torch.float32, CPU_KERNELS)
    spec = make_spec(
        directory,
        training_file,
        quantization={} if weights == "nf4" else None,
        target_modules=targets(base),
        experts=bool(base.experts),
        n_epochs=STEPS,
        batch_size=len(TEXTS),
        r=8,
        alpha=16,
        learning_rate=0.03,
    )
    code, log = run_trainer(spec, tmp_path / "work")
    assert code == 0, log.last
    assert isinstance(log.last, Done)
    table[name][f"{STEPS} steps, {weights}"] = f"{log.losses[0]:.2f} -> {log.losses[-1]:.2f}"
    assert log.losses[-1] < log.losses[0] / 2
    adapter = max((tmp_path / "work" / "runs" / "run-a" / "checkpoints").iterdir())
    saved = load_file(adapter / "adapter_model.safetensors")
    with warnings.catch_warnings(action="ignore"):
        model = PeftModel.from_pretrained(plain_model(base), adapter)
    named = {name.replace(".default", "") for name, _ in model.named_parameters() if "lora_" in name}
    assert named == saved.keys()  # the class that transformers and vLLM load has a place for every tensor


def _lora(base: FrozenBase) -> LoraSpec:
    return LoraSpec(r=8, alpha=16, target_modules=tuple(targets(base)), experts=bool(base.experts))


@torch.no_grad()
def _with_effect(adapter: LoraAdapter) -> LoraAdapter:
    """B starts at zero, where A has no gradient."""
    generator = torch.Generator().manual_seed(1)
    for weights in adapter.layers.values():
        weights.B_D_R.normal_(0, 0.05, generator=generator)
    return adapter


def _peft_model(base: FrozenBase, lora: LoraSpec, adapter: LoraAdapter) -> Any:
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=list(lora.target_modules),
        target_parameters=STACKED if lora.experts else None,
    )
    if base.decoder_prefix:
        config.exclude_modules = rf"(?!{base.decoder_prefix}\.).*"
    with warnings.catch_warnings(action="ignore"):
        model = get_peft_model(plain_model(base), config).eval()
    named = Plain(model, TokenizedDataset()).trained
    assert named.keys() == adapter.named_parameters().keys()
    with torch.no_grad():
        for name, parameter in adapter.named_parameters().items():
            named[name].copy_(parameter)
    return model


def _gradient(parameters: dict[str, torch.nn.Parameter]) -> torch.Tensor:
    return torch.cat([parameters[name].grad.float().flatten() for name in sorted(parameters)])
