"""Reference implementation for the tests: transformers' model and PEFT's layers, one example at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.integrations import dequantize_bnb_weight
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from app.domain.jobs.spec import LoraSpec, QuantizationSpec
from tests.trainer.helpers import load_tiny_base, make_one_step, make_spec, prepare
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.objective.optimizer import learning_rate
from worker.trainer.training.state import Run


def plain_base(directory: Path, quantization: QuantizationSpec | None) -> Any:
    """Load the base with transformers, computing in float32."""
    options = {}
    if quantization is not None and quantization.bits == 8:
        options = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    elif quantization is not None:
        four_bits = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.type,
            bnb_4bit_use_double_quant=quantization.double_quant,
            bnb_4bit_compute_dtype=torch.float32,
        )
        options = {"quantization_config": four_bits}
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options)


def dequantized_in_place(layer: Any) -> torch.Tensor:
    """Return what peft.utils.integrations.dequantize_module_weight should return on a CPU.

    PEFT 0.21 moves an 8-bit weight to its own device and loses the scales, so DoRA's first forward fails.
    """
    return (
        dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))
        if _is_quantized(layer)
        else layer.weight
    )


def _is_quantized(layer: Any) -> bool:
    return type(layer.weight).__name__ in ("Params4bit", "Int8Params")


def quiet() -> warnings.catch_warnings:  # type: ignore[type-arg]
    return warnings.catch_warnings(action="ignore")


def load(base: Path, adapter: Path, quantization: QuantizationSpec | None) -> Any:
    """Load the adapter onto the base, without dropout but in training mode: in evaluation mode bitsandbytes rounds
    activations to 8 bits."""
    with quiet():
        model = PeftModel.from_pretrained(plain_base(base, quantization), adapter)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


@torch.no_grad()
def logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with quiet():
        return model(input_ids=torch.tensor([tokens])).logits[0]  # type: ignore[no-any-return]


def train(
    base: Path, ours: Run, start: dict[str, torch.Tensor], quantization: QuantizationSpec | None
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Train as many steps as `ours` has done, from the tensors `start`.

    Returns the loss of each step, the norm of its gradient, and the trained tensors by PEFT's names.
    """
    model, named = peft_model(base, ours, start, quantization)

    def loss_of(step: int) -> torch.Tensor:
        parts = [_loss(model, ours, example) for example in ours.schedule.examples_of(step)]
        loss: torch.Tensor = sum(loss for loss, _ in parts) / sum(tokens for _, tokens in parts)  # type: ignore[assignment]
        return loss

    losses, norms = optimize(ours, named, loss_of)
    return losses, norms, {name: parameter.detach() for name, parameter in named.items()}


def peft_model(
    base: Path, ours: Run, start: dict[str, torch.Tensor], quantization: QuantizationSpec | None
) -> tuple[Any, dict[str, torch.nn.Parameter]]:
    """PEFT's model with our A and B, and its trained parameters by the names in adapter_model.safetensors."""
    with quiet():
        model = get_peft_model(plain_base(base, quantization), _config(ours.spec.lora)).train()
    named = {_saved_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    assert named.keys() == start.keys()
    with torch.no_grad():
        for name, tensor in start.items():
            if ".lora_A." in name or ".lora_B." in name:
                named[name].copy_(tensor)  # PEFT initializes the other tensors: the test compares that, too
    return model, named


def optimize(
    ours: Run, named: dict[str, torch.nn.Parameter], loss_of: Callable[[int], torch.Tensor]
) -> tuple[list[float], list[float]]:
    """As many steps of torch's AdamW as `ours` has made. Returns the loss and the norm of the gradient of each."""
    hyperparameters = ours.spec.hyperparameters
    optimizer = torch.optim.AdamW(named.values(), lr=0.0, weight_decay=hyperparameters.weight_decay)
    losses, norms = [], []
    for step in range(ours.step):
        loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        norms.append(torch.nn.utils.clip_grad_norm_(named.values(), hyperparameters.max_grad_norm).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(hyperparameters, step, ours.schedule.total_steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


def compare(
    base: Path, training_file: Path, quantization: QuantizationSpec | None, steps: int, **changes: Any
) -> tuple[FrozenBase, Run]:
    """Train with us and with PEFT: every loss, gradient norm and trained tensor is equal. Returns our base and run."""
    loaded = load_tiny_base(base, quantization)
    run = prepare(make_spec(base, training_file, quantization=quantization, **changes), loaded, Path("unused"))
    start = {name: parameter.detach().clone() for name, parameter in run.adapter.named_parameters().items()}
    results = [make_one_step(loaded, run) for _ in range(steps)]
    losses, norms, tensors = train(base, run, start, quantization)
    assert [result.loss for result in results] == pytest.approx(losses, rel=1e-4)
    assert [result.grad_norm for result in results] == pytest.approx(norms, rel=1e-3)
    assert run.adapter.named_parameters().keys() == tensors.keys()
    for name, parameter in run.adapter.named_parameters().items():
        assert not torch.equal(parameter, start[name]), f"{name} was not trained"
        torch.testing.assert_close(parameter.data, tensors[name], rtol=1e-2, atol=2e-4)
    return loaded, run


def _config(lora: LoraSpec) -> LoraConfig:
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=list(lora.target_modules),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        modules_to_save=list(lora.modules_to_save) or None,
        task_type="CAUSAL_LM",
    )


def _saved_name(name: str) -> str:
    """Return the name in adapter_model.safetensors of a parameter that PEFT has in memory under `name`."""
    name = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
    return name.replace(".modules_to_save.default.", ".").replace(".default", "")


def _loss(model: Any, run: Run, example: int) -> tuple[torch.Tensor, int]:
    tokens, labelled = run.dataset.tokens_and_labels(example)
    labels = [token if is_labelled else -100 for token, is_labelled in zip(tokens, labelled, strict=True)]
    with quiet():
        output = model(input_ids=torch.tensor([list(tokens)])).logits[0]
    return F.cross_entropy(output[:-1], torch.tensor(labels[1:]), ignore_index=-100, reduction="sum"), sum(labelled)
