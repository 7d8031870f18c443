"""MXFP4 and FP8 checkpoints become ordinary ones in bfloat16."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.sentences import Reviewed
from tests.tiny import make_tiny_base
from tests.trainer.helpers import change_config
from tests.trainer.model.bases import make_base
from worker.trainer.model.check_model import check_model
from worker.trainer.model.dequantize_checkpoint import dequantize, main

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
WEIGHT = "model.layers.0.mlp.down_proj.weight"
BLOCK = 48  # neither 64 nor 128, the sizes of this weight, is a multiple


@pytest.mark.parametrize("scale_shape", [(), (64, 1), (2, 3)], ids=["tensor", "row", "block"])
def test_fp8_weights_are_multiplied_with_their_scales(tmp_path: Path, scale_shape: tuple[int, ...]) -> None:
    directory = make_tiny_base(tmp_path / "base")
    tensors = load_file(directory / "model.safetensors")
    codes = tensors[WEIGHT].to(torch.float8_e4m3fn)
    scale = torch.rand(scale_shape) + 0.5
    is_block = scale_shape == (2, 3)
    save_file(tensors | {WEIGHT: codes, f"{WEIGHT}_scale_inv": scale}, directory / "model.safetensors")
    blocks = {"weight_block_size": [BLOCK, BLOCK]} if is_block else {}
    change_config(directory, quantization_config={"quant_method": "fp8", **blocks})
    dequantize(directory, tmp_path / "new")
    of_each = scale
    if is_block:
        rows, columns = torch.arange(64) // BLOCK, torch.arange(128) // BLOCK
        of_each = scale[rows][:, columns]
    new = load_file(tmp_path / "new" / "model.safetensors")
    assert torch.equal(new[WEIGHT], (codes.float() * of_each).to(torch.bfloat16))
    assert new.keys() == tensors.keys()
    assert "quantization_config" not in json.loads((tmp_path / "new" / "config.json").read_text())
    assert check_model(tmp_path / "new").problems == ()


def test_mxfp4_experts_are_unpacked(tmp_path: Path) -> None:
    directory = make_base("gpt-oss", tmp_path / "base")
    tensors, expected = load_file(directory / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32), dtype=torch.uint8)
        exponents = torch.randint(120, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
        tensors[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        tensors[f"{name}_scales"] = exponents
        values = FP4[codes.int()] * 2.0 ** (exponents.float()[..., None] - 127)
        expected[name] = values.reshape(experts, outputs, inputs).transpose(1, 2).to(torch.bfloat16)
    save_file(tensors, directory / "model.safetensors")
    change_config(directory, quantization_config={"quant_method": "mxfp4"})
    dequantize(directory, tmp_path / "new")
    new = load_file(tmp_path / "new" / "model.safetensors")
    assert all(torch.equal(new[name], values) for name, values in expected.items())
    assert check_model(tmp_path / "new").problems == ()


def test_two_conversions_of_a_checkpoint_do_not_run_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reviewed: Reviewed
) -> None:
    directory = make_tiny_base(tmp_path / "base")
    change_config(directory, quantization_config={"quant_method": "fp8"})
    with (tmp_path / ".new.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main([str(directory), str(tmp_path / "new")]) == 1
    reviewed(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()
    assert main([str(directory), str(tmp_path / "new")]) == 0
