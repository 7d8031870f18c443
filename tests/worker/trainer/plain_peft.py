"""The oracle: transformers' model, PEFT's layers, one example at a time, none of our rooms but the data."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.integrations import dequantize_bnb_weight
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from app.domain.jobs.spec import LoraSpec, QuantizationSpec
from worker.trainer.objective.optimizer import learning_rate
from worker.trainer.state import Run


def plain_base(directory: Path, quantization: QuantizationSpec | None) -> Any:
    """The base as anybody loads it, computing in float32."""
    how = {}
    if quantization is not None and quantization.bits == 8:
        how = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    elif quantization is not None:
        four_bits = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.type,
            bnb_4bit_use_double_quant=quantization.double_quant,
            bnb_4bit_compute_dtype=torch.float32,
        )
        how = {"quantization_config": four_bits}
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **how)


def dequantized_in_place(layer: Any) -> torch.Tensor:
    """What peft.utils.integrations.dequantize_module_weight gives, without its defect on a CPU.

    PEFT 0.21 moves an 8-bit weight to the device where it is, which loses its scales: DoRA's first forward fails.
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
    """The adapter on the base, ready to answer. In training mode: in evaluation bitsandbytes rounds activations."""
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
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """As many steps as `ours` has done, from the tensors `start`: (loss of each step, tensors by PEFT's names)."""
    knobs = ours.spec.hyperparameters
    with quiet():
        model = get_peft_model(plain_base(base, quantization), _config(ours.spec.lora)).train()
    named = {_saved_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    assert named.keys() == start.keys()
    with torch.no_grad():
        for name, tensor in start.items():
            if ".lora_A." in name or ".lora_B." in name:
                named[name].copy_(tensor)  # everything else starts as PEFT starts it, which is part of the test
    optimizer = torch.optim.AdamW(named.values(), lr=0.0, weight_decay=knobs.weight_decay)
    losses = []
    for step in range(ours.step):
        parts = [_loss(model, ours, example) for example in ours.schedule.examples_of(step)]
        loss: Any = sum(loss for loss, _ in parts) / sum(tokens for _, tokens in parts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), knobs.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(knobs, step, ours.schedule.total_steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: parameter.detach() for name, parameter in named.items()}


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
    """PEFT's name in memory -> in adapter_model.safetensors."""
    return name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector").replace(
        ".modules_to_save.default.", "."
    ).replace(".default", "")  # fmt: skip


def _loss(model: Any, run: Run, example: int) -> tuple[torch.Tensor, int]:
    tokens, labelled = run.dataset.slice(example)
    labels = [token if is_labelled else -100 for token, is_labelled in zip(tokens, labelled, strict=True)]
    with quiet():
        output = model(input_ids=torch.tensor([list(tokens)])).logits[0]
    return F.cross_entropy(output[:-1], torch.tensor(labels[1:]), ignore_index=-100, reduction="sum"), sum(labelled)
