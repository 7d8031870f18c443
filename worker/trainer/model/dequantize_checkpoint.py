"""Convert an MXFP4 or FP8 checkpoint to bfloat16.

`python -m worker.trainer.model.dequantize_checkpoint DIRECTORY DESTINATION`

Training needs a checkpoint in 16 bits, which QLoRA quantizes itself. The files keep their names.

    MXFP4   NAME_blocks (two 4-bit floats per byte) and NAME_scales (an exponent per 32 values): NAME
    FP8     NAME (float8_e4m3fn) and NAME_scale_inv or NAME_scale (for the tensor, a row or a block): NAME
"""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from app.system.artifact_directory import published
from app.system.files import write_json
from app.system.model_files import DEQUANTIZED_FROM, INDEX, hash_directory, weight_files
from worker.trainer.runtime.process import die_with_parent

FP8_SCALES = ("_scale_inv", "_scale")
# Scales of activations: no activation is quantized in training.
OMITTED = ("_scales", *FP8_SCALES, ".input_scale", ".activation_scale")


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m worker.trainer.model.dequantize_checkpoint DIRECTORY DESTINATION", file=sys.stderr)
        return 2
    die_with_parent()
    try:
        dequantize(*map(Path, arguments))
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)
        return 1
    return 0


def dequantize(source: Path, destination: Path) -> None:
    """Write the checkpoint in bfloat16 to `destination`, completely or not at all. Raises OSError."""
    with _locked(destination.with_name(f".{destination.name}.lock")), published(destination) as directory:
        (directory / DEQUANTIZED_FROM).write_text(hash_directory(source)[1] + "\n", encoding="utf-8")
        _write(source, directory)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock in the block: two registrations would delete each other's files. Raises BlockingIOError."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError("another process converts it now; try again when that has ended") from error
        yield


def _write(source: Path, directory: Path) -> None:
    files = {}
    for path in weight_files(source):
        with safe_open(path, framework="pt", device="cpu") as file:
            files[path] = list(file.keys())
    places = {key: path for path, keys in files.items() for key in keys}
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    block = (config.get("quantization_config") or {}).get("weight_block_size")
    weight_map: dict[str, str] = {}
    for path, keys in files.items():
        tensors = dict(_dequantized(key, places, block) for key in keys if not key.endswith(OMITTED))
        save_file(tensors, directory / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, path.name)
    for each in (config, config.get("text_config") or {}):
        each.pop("quantization_config", None)
        each["dtype"] = "bfloat16"
    write_json(directory / "config.json", config)
    if (source / INDEX).exists():
        write_json(directory / INDEX, {"metadata": {}, "weight_map": weight_map})
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and not (directory / path.name).exists():
            shutil.copyfile(path, directory / path.name)


def _dequantized(key: str, places: dict[str, Path], block: list[int] | None) -> tuple[str, torch.Tensor]:
    """Return the name and the value of a tensor in bfloat16."""
    tensor = _read(key, places)
    if key.endswith("_blocks"):
        name = key.removesuffix("_blocks")
        weights = convert_moe_packed_tensors(tensor, _read(f"{name}_scales", places), dtype=torch.bfloat16)
        return name, weights.contiguous()
    scale = next((key + suffix for suffix in FP8_SCALES if key + suffix in places), None)
    if scale is not None:
        tensor = tensor.float() * _expanded(_read(scale, places).float(), tensor.shape, block)
    return key, tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _expanded(scale: torch.Tensor, shape: torch.Size, block: list[int] | None) -> torch.Tensor:
    """Return one scale for each weight. A scale is that of the tensor, of a row, or of a block of the last dimensions.

    The last block of a dimension may be incomplete.
    """
    if scale.numel() == 1:
        return scale.reshape(())
    scale = scale.reshape(*scale.shape, *[1] * (len(shape) - scale.ndim))
    for dimension, size in enumerate(block or (), start=len(shape) - len(block or ())):
        if scale.shape[dimension] == math.ceil(shape[dimension] / size):
            scale = scale.repeat_interleave(size, dim=dimension).narrow(dimension, 0, shape[dimension])
    return scale


def _read(key: str, places: dict[str, Path]) -> torch.Tensor:
    with safe_open(places[key], framework="pt", device="cpu") as file:
        tensor: torch.Tensor = file.get_tensor(key)
        return tensor


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
