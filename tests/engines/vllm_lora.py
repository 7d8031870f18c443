"""What vLLM makes of adapters, without an engine: run by vLLM's Python, prints one JSON object.

    python vllm_lora.py DIRECTORY CLASS...

Each directory in DIRECTORY has `base`, `adapter` and `merged`. vLLM's own classes are made of the base model, load its
weights and the merged ones, and load the adapter as a server does. `CLASS...` are names of its registry.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_PLUGINS": "", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import torch
from safetensors.torch import load_file
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs
from vllm.lora import utils
from vllm.lora.layers import FusedMoEWithLoRA
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import ModelRegistry, supports_lora
from vllm.utils.torch_utils import set_default_torch_dtype

NOT_TEXT = re.compile(r"vision|visual|projector|audio")
TOLERANCE = 1e-4  # of the largest change of a weight; float32 in sums of two orders


def main(directory: Path, classes: list[str]) -> dict[str, Any]:
    # vLLM's experts have no LoRA on a CPU: they stay as they are, and the adapters here leave them out.
    utils._all_lora_classes = tuple(each for each in utils._all_lora_classes if not issubclass(each, FusedMoEWithLoRA))
    bases = sorted(path.name for path in directory.iterdir())
    configs = {name: _config(directory / name / "base") for name in bases}
    with_experts = next(each for each in configs.values() if each.model_config.is_moe)
    with set_current_vllm_config(with_experts):  # only then is there a group of processes for the experts
        init_distributed_environment(1, 0, f"file://{directory.resolve()}.rendezvous", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
    found = {}
    for name, config in configs.items():
        with set_current_vllm_config(config):
            found[name] = _outcome(config, directory / name)
    return {"bases": found, "without_lora": _without_lora(classes)}


def _config(base: Path) -> VllmConfig:
    return EngineArgs(
        model=str(base),
        dtype="float32",
        enable_lora=True,
        max_lora_rank=8,
        max_model_len=64,
        max_num_seqs=1,
        enforce_eager=True,
    ).create_engine_config()


def _outcome(config: VllmConfig, directory: Path) -> dict[str, Any]:
    """The class that vLLM takes, and why it refuses the adapter, or the layers in which it differs from `merged`."""
    with set_default_torch_dtype(torch.float32):
        model = initialize_model(config)
    outcome: dict[str, Any] = {"class": type(model).__name__}
    if not supports_lora(model):
        return outcome | {"refused": "the class has no LoRA"}
    base = _weights(model, directory / "base")
    merged = _weights(model, directory / "merged")
    changes = {name: change for name in base if (change := merged[name] - base[name]).any()}
    manager = LRUCacheWorkerLoRAManager(config, torch.device("cpu"), model.embedding_modules)
    manager.create_lora_manager(model, config)
    try:
        manager.add_adapter(LoRARequest("adapter", 1, str(directory / "adapter")))
    except ValueError as error:
        return outcome | {"refused": str(error)}
    manager._adapter_manager.activate_adapter(1)
    served = _served_changes(manager._adapter_manager.modules)
    different = [name for name in changes.keys() | served.keys() if not _is_same(changes.get(name), served.get(name))]
    return outcome | {"layers": len(changes), "different": sorted(different)}


def _weights(model: Any, directory: Path) -> dict[str, torch.Tensor]:
    """Of the linear layers, after vLLM has loaded the text model from this directory."""
    tensors = load_file(directory / "model.safetensors")
    model.load_weights((name, tensor) for name, tensor in tensors.items() if not NOT_TEXT.search(name))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, LinearBase)}
    return {name: module.weight.detach().clone() for name, module in linears.items() if not NOT_TEXT.search(name)}


def _served_changes(modules: dict[str, Any]) -> dict[str, torch.Tensor]:
    """B A of each layer that has the adapter, with vLLM's scale; a fused layer has one product for each part."""
    linears = {name: module for name, module in modules.items() if isinstance(module.base_layer, LinearBase)}
    products = {
        name: torch.cat([b[0, 0] @ a[0, 0] for a, b in zip(module.lora_a_stacked, module.lora_b_stacked, strict=True)])
        for name, module in linears.items()
    }
    return {name: product for name, product in products.items() if product.any()}


def _is_same(change: torch.Tensor | None, served: torch.Tensor | None) -> bool:
    if change is None or served is None or change.shape != served.shape:
        return False
    return bool((change - served).abs().max() < TOLERANCE * change.abs().max())


def _without_lora(classes: Iterable[str]) -> list[str]:
    found = []
    for name in classes:
        with suppress(ImportError, KeyError):  # a package of its own, or not in the registry
            if not supports_lora(ModelRegistry.models[name].load_model_cls()):
                found.append(name)
    return found


if __name__ == "__main__":
    result = main(Path(sys.argv[1]), sys.argv[2:])
    print(json.dumps(result))
