"""One DoRA layer compared with PEFT's, with the same dropout mask."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from app.domain.jobs.spec import LoraSpec, QuantizationSpec
from tests.trainer import plain_peft
from tests.trainer.helpers import CPU_KERNELS
from worker.trainer.adapter.dora import DoraLinear, row_lengths
from worker.trainer.adapter.lora import AdaptedLinear, AdapterSwitch, LoraAdapter, make_adapter
from worker.trainer.model.frozen_linear import freeze

T, K, D = 6, 16, 12


class FixedDropout(torch.nn.Module):
    """Dropout with a given mask."""

    def __init__(self, keep_T_K: torch.Tensor, dropout: float) -> None:
        super().__init__()
        self.keep_T_K, self.dropout = keep_T_K, dropout

    def forward(self, x_T_K: torch.Tensor) -> torch.Tensor:
        return x_T_K * self.keep_T_K / (1 - self.dropout)


def dora(dropout: float, quantization: QuantizationSpec | None = None) -> tuple[DoraLinear, LoraAdapter]:
    """Return a layer with a bias, a B that is not zero, and a changed magnitude."""
    dice = torch.Generator().manual_seed(0)
    frozen = freeze(torch.randn(D, K, generator=dice), quantization, torch.float32)
    frozen.bias = torch.nn.Parameter(torch.randn(D, generator=dice), requires_grad=False)
    layer = DoraLinear("q_proj", frozen, AdapterSwitch())
    spec = LoraSpec(r=4, alpha=6, dropout=dropout, target_modules=("q_proj",), use_dora=True)
    adapter = make_adapter(spec, 1, {"q_proj": AdaptedLinear("q_proj", frozen, layer._switch)}, CPU_KERNELS)
    mine = adapter.layers["q_proj"]
    with torch.no_grad():
        mine.B_D_R.normal_(generator=dice)
    mine.magnitude_D = torch.nn.Parameter(row_lengths(frozen, mine) * 1.2 + 0.1)
    return layer, adapter


def pefts(layer: DoraLinear, adapter: LoraAdapter, dropout: torch.nn.Module) -> Any:
    """Return PEFT's layer with the same weights."""
    plain = torch.nn.Linear(K, D)
    plain.weight.data, plain.bias.data = layer.base.weight_in(torch.float32), layer.base.bias.data
    config = LoraConfig(r=4, lora_alpha=6, lora_dropout=0.5, target_modules=["q_proj"], use_dora=True)
    with plain_peft.quiet():
        model = get_peft_model(torch.nn.ModuleDict({"q_proj": plain}), config)
    theirs = model.base_model.model["q_proj"].train()
    mine = adapter.layers["q_proj"]
    theirs.lora_A.default.weight.data, theirs.lora_B.default.weight.data = mine.A_R_K.data, mine.B_D_R.data
    theirs.lora_magnitude_vector.default.weight.data = mine.magnitude_D.data  # type: ignore[union-attr]
    theirs.lora_dropout["default"] = dropout
    return theirs


@pytest.mark.parametrize("quantization", [None, QuantizationSpec(compute_dtype="float32"), QuantizationSpec(bits=8)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_output_and_gradients_equal_pefts(dropout: float, quantization: QuantizationSpec | None) -> None:
    layer, adapter = dora(dropout, quantization)
    generator_state = copy.deepcopy(adapter.generator.get_state())
    x = torch.randn(T, K, generator=torch.Generator().manual_seed(3), requires_grad=True)
    with layer._switch.on(adapter):
        ours = layer(x)
    ours.square().sum().backward()
    mine = adapter.layers["q_proj"]
    found = [x.grad, mine.A_R_K.grad, mine.B_D_R.grad, mine.magnitude_D.grad]  # type: ignore[union-attr]

    masks = torch.Generator()
    masks.set_state(generator_state)
    keep = torch.empty(T, K, dtype=torch.bool).bernoulli_(1 - dropout, generator=masks)
    theirs = pefts(layer, adapter, FixedDropout(keep, dropout) if dropout else torch.nn.Identity())
    x.grad = None
    want = theirs(x)
    want.square().sum().backward()
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)
    wanted = [
        x.grad, theirs.lora_A.default.weight.grad, theirs.lora_B.default.weight.grad,
        theirs.lora_magnitude_vector.default.weight.grad,
    ]  # fmt: skip
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_dropout_is_off_without_gradients() -> None:
    layer, adapter = dora(0.5)
    with torch.no_grad(), layer._switch.on(adapter):
        assert torch.equal(layer(torch.ones(T, K)), layer(torch.ones(T, K)))
