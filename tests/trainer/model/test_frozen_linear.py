from __future__ import annotations

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant, int8_vectorwise_quant, quantize_4bit

from app.domain.jobs.spec import QuantizationSpec
from worker.trainer.model.frozen_linear import Frozen4, Frozen8, Frozen16, freeze, stored_bytes

WIDTH, INNER = 576, 1536  # the bundled model's


def matrix(rows: int = INNER, columns: int = WIDTH) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


class TestFourBits:
    def test_nf4_with_double_quantisation_takes_at_most_4_13_bits_a_parameter(self) -> None:
        layer = freeze(matrix(), QuantizationSpec(), torch.bfloat16)
        assert stored_bytes(layer) * 8 / (WIDTH * INNER) <= 4.13

    def test_without_double_quantisation_it_takes_4_5_bits(self) -> None:
        layer = freeze(matrix(), QuantizationSpec(double_quant=False), torch.bfloat16)
        assert stored_bytes(layer) * 8 / (WIDTH * INNER) == 4.5

    @pytest.mark.parametrize("kind", ["nf4", "fp4"])
    def test_the_weight_equals_bitsandbytes(self, kind: str) -> None:
        layer = freeze(matrix(), QuantizationSpec(type=kind), torch.bfloat16)  # type: ignore[arg-type]
        codes, state = quantize_4bit(matrix(), compress_statistics=True, quant_type=kind)
        assert torch.equal(layer.weight_in(torch.bfloat16), dequantize_4bit(codes, state))
        assert isinstance(layer, Frozen4)

    def test_a_product_does_not_change_the_codes_also_in_evaluation(self) -> None:
        layer = freeze(matrix(), QuantizationSpec(), torch.bfloat16)
        before = layer.weight.data.clone()
        layer.eval()  # type: ignore[attr-defined]  # bitsandbytes' own forward would repack them now
        with torch.no_grad():
            layer(torch.ones(3, WIDTH, dtype=torch.bfloat16))  # type: ignore[operator]
        assert torch.equal(layer.weight.data, before)

    def test_values_in_float32_equal_those_in_the_compute_dtype(self) -> None:
        layer = freeze(matrix(), QuantizationSpec(), torch.bfloat16)
        assert torch.equal(layer.weight_in(torch.float32), layer.weight_in(torch.bfloat16).float())

    def test_cached_it_is_equal_to_the_bit_and_dequantised_once(self) -> None:
        layer = freeze(matrix(), QuantizationSpec(), torch.bfloat16)
        fresh = layer.weight_in(torch.bfloat16)
        assert isinstance(layer, Frozen4)
        layer.cache_weight(True)
        assert torch.equal(layer.weight_in(torch.bfloat16), fresh)
        assert layer.weight_in(torch.bfloat16).data_ptr() == layer.weight_in(torch.bfloat16).data_ptr()


class TestSixteenBits:
    def test_the_weight_equals_that_of_the_file(self) -> None:
        layer = freeze(matrix(), None, torch.bfloat16)
        assert isinstance(layer, Frozen16)
        assert torch.equal(layer.weight_in(torch.bfloat16), matrix())
        assert stored_bytes(layer) == 2 * WIDTH * INNER


class TestEightBits:
    def test_the_weight_equals_bitsandbytes_to_the_last_digit_of_float32(self) -> None:
        layer = freeze(matrix(), QuantizationSpec(bits=8), torch.bfloat16)
        codes, scales, _ = int8_vectorwise_quant(matrix().to(torch.float16))
        assert isinstance(layer, Frozen8)
        assert torch.equal(layer.weight_in(torch.float32), int8_vectorwise_dequant(codes, scales))
        assert torch.equal(layer.weight_in(torch.bfloat16), layer.weight_in(torch.float32).to(torch.bfloat16))

    def test_it_takes_a_byte_per_parameter_and_a_scale_per_row(self) -> None:
        layer = freeze(matrix(), QuantizationSpec(bits=8), torch.bfloat16)
        assert stored_bytes(layer) == WIDTH * INNER + 4 * INNER

    def test_it_is_closer_to_the_file_than_4_bits(self) -> None:
        four, eight = (freeze(matrix(), QuantizationSpec(bits=bits), torch.float32) for bits in (4, 8))
        error = [(layer.weight_in(torch.float32) - matrix().float()).norm() for layer in (four, eight)]
        assert error[1] < error[0] / 5

    def test_a_product_does_not_change_codes_and_scales(self) -> None:
        layer = freeze(matrix(), QuantizationSpec(bits=8), torch.bfloat16)
        before = layer.weight_in(torch.float32)
        x = torch.ones(3, WIDTH, dtype=torch.bfloat16)
        assert torch.equal(layer(x), layer(x))  # type: ignore[operator]
        assert torch.equal(layer.weight_in(torch.float32), before)

    def test_cached_it_is_equal_to_the_bit_and_dequantised_once(self) -> None:
        layer = freeze(matrix(4096), QuantizationSpec(bits=8), torch.bfloat16)  # dequantized in three parts
        fresh, in_float32 = layer.weight_in(torch.bfloat16), layer.weight_in(torch.float32)
        assert isinstance(layer, Frozen8)
        layer.cache_weight(True)
        assert torch.equal(layer.weight_in(torch.bfloat16), fresh)
        assert layer.weight_in(torch.bfloat16).data_ptr() == layer.weight_in(torch.bfloat16).data_ptr()
        assert torch.equal(layer.weight_in(torch.float32), in_float32)
        layer.cache_weight(False)
        assert layer.cached is None
