from __future__ import annotations

from typing import Literal

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant, int8_vectorwise_quant, quantize_4bit

from app.domain.jobs.spec import QuantizationSpec
from worker.trainer.model.frozen_experts import freeze_stack
from worker.trainer.model.frozen_linear import Frozen4, Frozen8, freeze, stored_bytes

WIDTH, INNER = 576, 1536  # the bundled model's


def matrix(rows: int = INNER, columns: int = WIDTH) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("quantization", "most_bits"),
    [
        (QuantizationSpec(), 4.13),
        (QuantizationSpec(double_quant=False), 4.5),
        (QuantizationSpec(bits=8), 8 + 32 / WIDTH),  # and a scale for each row
        (None, 16),
    ],
)
def test_a_parameter_takes_so_many_bits(quantization: QuantizationSpec | None, most_bits: float) -> None:
    layer = freeze(matrix(), quantization, torch.bfloat16)
    assert 0.99 * most_bits < stored_bytes(layer) * 8 / (WIDTH * INNER) <= most_bits


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_weight_in_4_bits_equals_bitsandbytes(kind: str) -> None:
    layer = freeze(matrix(), QuantizationSpec(type=kind), torch.bfloat16)  # type: ignore[arg-type]
    codes, state = quantize_4bit(matrix(), compress_statistics=True, quant_type=kind)
    assert torch.equal(layer.weight_in(torch.bfloat16), dequantize_4bit(codes, state))
    assert torch.equal(layer.weight_in(torch.float32), layer.weight_in(torch.bfloat16).float())


def test_a_weight_in_8_bits_equals_bitsandbytes_to_the_last_digit_of_float32() -> None:
    layer = freeze(matrix(), QuantizationSpec(bits=8), torch.bfloat16)
    codes, scales, _ = int8_vectorwise_quant(matrix().to(torch.float16))
    assert torch.equal(layer.weight_in(torch.float32), int8_vectorwise_dequant(codes, scales))
    assert torch.equal(layer.weight_in(torch.bfloat16), layer.weight_in(torch.float32).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("of_file", "compute_dtype", "stored"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32, torch.float16),  # a CPU without instructions for bfloat16
    ],
)
def test_a_weight_that_is_not_quantized_keeps_the_16_bits_of_its_file(
    of_file: torch.dtype, compute_dtype: torch.dtype, stored: torch.dtype
) -> None:
    weight = matrix().to(of_file)
    layer, stack = freeze(weight, None, compute_dtype), freeze_stack(weight.unsqueeze(0), None, compute_dtype)
    assert {layer.weight.dtype, stack.tensors_E[0].dtype} == {stored}
    for used in (layer.weight_in(compute_dtype), stack.weights_in(compute_dtype)[0]):
        assert torch.equal(used, weight.to(compute_dtype))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_product_does_not_change_the_weight_also_in_evaluation(bits: Literal[4, 8]) -> None:
    layer = freeze(matrix(), QuantizationSpec(bits=bits), torch.bfloat16)
    before, weight = layer.weight.data.clone(), layer.weight_in(torch.float32)
    layer.eval()  # type: ignore[attr-defined]  # bitsandbytes' own forward would repack the codes now
    with torch.no_grad():
        layer(torch.ones(3, WIDTH, dtype=torch.bfloat16))  # type: ignore[operator]
    assert torch.equal(layer.weight.data, before)
    assert torch.equal(layer.weight_in(torch.float32), weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_cached_weight_is_equal_to_the_bit_and_dequantized_once(bits: Literal[4, 8]) -> None:
    layer = freeze(matrix(4096), QuantizationSpec(bits=bits), torch.bfloat16)  # 8 bits: dequantized in three parts
    fresh, in_float32 = layer.weight_in(torch.bfloat16), layer.weight_in(torch.float32)
    assert isinstance(layer, Frozen4 | Frozen8)
    layer.cache_weight(True)
    assert torch.equal(layer.weight_in(torch.bfloat16), fresh)
    assert layer.weight_in(torch.bfloat16).data_ptr() == layer.weight_in(torch.bfloat16).data_ptr()
    assert torch.equal(layer.weight_in(torch.float32), in_float32)
    layer.cache_weight(False)
    assert layer.cached is None
