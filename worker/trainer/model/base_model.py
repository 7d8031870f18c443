"""The frozen base model: loaded from a registered directory, with every linear layer but the head adapted.

Weights are read and quantised one tensor at a time, so memory never holds a second copy of the base, nor one in full
precision. Only safetensors are read; no code in the directory is run, and nothing is downloaded.

Letters: T tokens of a batch, D the hidden size, V the vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from app.domain.base_models.catalog import ALTERED_REASON, unusable_model_message
from app.domain.jobs.spec import BaseSpec, QuantizationSpec
from app.domain.jobs.states import Reason
from app.system.model_files import hash_directory, stat_signature, weight_files
from worker.trainer.adapter.lora import AdaptedLinear, AdapterSwitch, LoraAdapter
from worker.trainer.adapter.modules_to_save import ModuleToSave
from worker.trainer.data.batch import PackedBatch
from worker.trainer.model import attention
from worker.trainer.model.frozen_linear import Frozen4, Frozen8, freeze, stored_bytes
from worker.trainer.model.memory_efficient_modules import use_memory_efficient_modules
from worker.trainer.runtime.failures import Failure, is_out_of_memory

# Settings of heads that are more than one matrix product: the loss would be wrong for such a model.
HEAD_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass
class FrozenBase:
    """The frozen base model as it is loaded, with layers that can apply an adapter."""

    name: str
    directory: Path
    model: Any  # a transformers causal language model whose linear layers are AdaptedLinear
    layers: dict[str, AdaptedLinear]
    switch: AdapterSwitch  # selects the adapter that the layers apply
    device: torch.device
    compute_dtype: torch.dtype
    modules_to_save: dict[str, ModuleToSave] = field(default_factory=dict)
    quantization: QuantizationSpec | None = None

    @property
    def head_V_D(self) -> torch.Tensor:  # noqa: N802  shapes stand in names
        """The head's weight in the base model."""
        weight: torch.Tensor = self.model.get_output_embeddings().weight
        return weight

    def head_with(self, adapter: LoraAdapter | None) -> torch.Tensor:
        """Return the head, V x D: the base model's, or the float32 master of an adapter that trains it."""
        head = self.model.get_output_embeddings()
        if adapter is not None and isinstance(head, ModuleToSave):
            return head.master(adapter, "weight")
        return self.head_V_D

    @property
    def frozen_parameters(self) -> int:
        layers: int = sum(layer.base.in_features * layer.base.out_features for layer in self.layers.values())
        return layers + sum(parameter.numel() for parameter in self._other_parameters())

    @property
    def stored_bytes(self) -> int:
        layers = sum(stored_bytes(layer.base) for layer in self.layers.values())
        return layers + sum(parameter.numel() * parameter.element_size() for parameter in self._other_parameters())

    def cache_weights(self, are_cached: bool) -> None:
        """Cache the dequantised weights of quantised layers (2 bytes per weight), or free them. Results stay equal."""
        for layer in self.layers.values():
            if isinstance(layer.base, Frozen4 | Frozen8):
                layer.base.cache_weight(are_cached)

    def _other_parameters(self) -> Iterator[torch.nn.Parameter]:
        weights = {id(layer.base.weight) for layer in self.layers.values()}
        return (parameter for parameter in self.model.parameters() if id(parameter) not in weights)


def open_base(
    spec: BaseSpec, quantization: QuantizationSpec | None, compute_dtype: torch.dtype, device: torch.device
) -> FrozenBase:
    """Check the directory against its registration, then load it. Raises Failure(MODEL_UNAVAILABLE)."""
    _check_files(spec)
    return load_base(spec.name, spec.directory, quantization, compute_dtype, device)


def load_base(
    name: str,
    directory: Path,
    quantization: QuantizationSpec | None,
    compute_dtype: torch.dtype,
    device: torch.device,
) -> FrozenBase:
    """Load a causal language model with frozen linear layers and no adapter. Raises Failure(MODEL_UNAVAILABLE)."""
    model = _meta_model(name, directory, compute_dtype)
    linears = _linear_names(model)
    for key, tensor in _read_tensors(name, model, directory):
        _assign(model, key, tensor.to(device), linears, quantization, compute_dtype)
    model.tie_weights()
    _check_complete(name, model)
    _move_buffers(model, device)
    model.eval().requires_grad_(False)  # disables the dropout of the base model; the adapter's is separate
    switch = AdapterSwitch()
    layers = _adapt(model, linears, switch)
    use_memory_efficient_modules(model, compute_dtype)
    return FrozenBase(name, directory, model, layers, switch, device, compute_dtype, quantization=quantization)


def hidden_states(
    base: FrozenBase, batch: PackedBatch, adapter: LoraAdapter | None = None, *, float32: bool = False
) -> torch.Tensor:
    """Return the last hidden state of every token (T x D), of the base model or of the model with `adapter`.

    With `float32` the hidden states are float32 throughout, with the same weights.
    """
    tokens_1_T = batch.tokens_T.unsqueeze(0)
    with base.switch.on(adapter):
        embedded_1_T_D = base.model.get_input_embeddings()(tokens_1_T)
        output = base.model.base_model(
            inputs_embeds=embedded_1_T_D.float() if float32 else embedded_1_T_D,
            position_ids=batch.positions_T.unsqueeze(0),
            use_cache=False,
            document_lengths=batch.document_lengths,
        )
    hidden_1_T_D: torch.Tensor = output.last_hidden_state
    return hidden_1_T_D[0]


@contextmanager
def in_float32(base: FrozenBase) -> Iterator[None]:
    """Convert norms and biases to float32 in the block, so that the model accepts float32 hidden states.

    Matrices keep their dtype; each is converted for its product only.
    """
    vectors = [parameter for parameter in base.model.parameters() if parameter.ndim == 1]
    originals = [parameter.data for parameter in vectors]
    try:
        for parameter in vectors:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, data in zip(vectors, originals, strict=True):
            parameter.data = data


@contextmanager
def unwrapped(base: FrozenBase) -> Iterator[Any]:
    """Yield the model with its original frozen modules in place of our wrappers, as PEFT expects it."""
    wrappers = {**base.layers, **base.modules_to_save}
    originals = {name: layer.base for name, layer in base.layers.items()}
    originals |= {name: module.frozen for name, module in base.modules_to_save.items()}
    for name, module in originals.items():
        base.model.set_submodule(name, module)
    try:
        yield base.model
    finally:
        for name, module in wrappers.items():
            base.model.set_submodule(name, module)


# --- loading ----------------------------------------------------------------------------------------------------------


def _check_files(spec: BaseSpec) -> None:
    """Hash the files, unless the worker has done so and they have not changed since (by their stat signature)."""
    try:
        if spec.signature is not None and spec.signature == stat_signature(spec.directory):
            return
        _, manifest_sha256 = hash_directory(spec.directory)
    except OSError as error:
        raise _unavailable(spec.name, f"its directory cannot be read ({error.strerror})") from error
    if manifest_sha256 != spec.manifest_sha256:
        raise _unavailable(spec.name, ALTERED_REASON)


def _meta_model(name: str, directory: Path, compute_dtype: torch.dtype) -> Any:
    """Return the model without weights (on the device `meta`), but with the buffers, which no file contains."""
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:  # the text of the error would show paths
        model_type = json.loads((directory / "config.json").read_bytes()).get("model_type")
        raise _unavailable(
            name, f"transformers does not support its config.json (model_type {model_type!r})"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        problem = f"transformers has no causal language model of its type (model_type {config.model_type!r})"
        raise _unavailable(name, problem)
    if settings := [key for key in HEAD_SETTINGS if getattr(config, key, None) not in (None, 1, 1.0)]:
        raise _unavailable(name, f"its head is scaled by {', '.join(settings)}, which Tunery does not support yet")
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(
            config, dtype=compute_dtype, attn_implementation=attention.NAME, trust_remote_code=False
        )


def _linear_names(model: Any) -> list[str]:
    """Return the names of all linear layers except the head."""
    head = model.get_output_embeddings()
    modules = model.named_modules()
    return [name for name, module in modules if isinstance(module, torch.nn.Linear) and module is not head]


def _read_tensors(name: str, model: Any, directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the directory's files. Raises Failure for one that the model does not have."""
    expected = set(model.state_dict())
    ignored = re.compile("|".join([r"rotary_emb\.inv_freq", *(model._keys_to_ignore_on_load_unexpected or ())]))
    for path in weight_files(directory):
        with _report_broken_file(name, path), safe_open(path, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118  not a dictionary
                if key in expected:
                    yield key, file.get_tensor(key)
                elif not ignored.search(key):
                    raise _unavailable(name, f"{path.name} contains {key}, which {type(model).__name__} does not have")


@contextmanager
def _report_broken_file(name: str, path: Path) -> Iterator[None]:
    """Turn a missing or broken file into a Failure: it was so when the base was registered, so a retry cannot help."""
    if not path.exists():
        raise _unavailable(name, f"its file {path.name} is missing")
    try:
        yield
    except SafetensorError as error:
        if is_out_of_memory(error):
            raise
        raise _unavailable(name, f"{path.name} is damaged ({error})") from error


def _assign(
    model: Any,
    key: str,
    tensor: torch.Tensor,
    linears: list[str],
    quantization: QuantizationSpec | None,
    compute_dtype: torch.dtype,
) -> None:
    """Put a tensor of a file into the model; the weight of a linear layer becomes a frozen layer."""
    module_name, _, parameter_name = key.rpartition(".")
    module = model.get_submodule(module_name)
    if module_name in linears and parameter_name == "weight":
        layer: Any = freeze(tensor, quantization, compute_dtype)
        layer.bias = module.bias  # loaded before or still on `meta`: files have their tensors in any order
        model.set_submodule(module_name, layer)
    else:
        constant = torch.nn.Parameter(tensor.to(compute_dtype, copy=True), requires_grad=False)
        setattr(module, parameter_name, constant if parameter_name in module._parameters else constant.data)


def _check_complete(name: str, model: Any) -> None:
    missing = [key for key, parameter in model.named_parameters() if parameter.device.type == "meta"]
    if missing:
        text = f"its files lack {len(missing)} of the weights that {type(model).__name__} needs, such as {missing[0]}"
        raise _unavailable(name, text)
    if stacked := [key for key, parameter in model.named_parameters() if parameter.ndim > 2]:
        text = f"it has experts or other layers in one tensor ({stacked[0]}), which Tunery does not support yet"
        raise _unavailable(name, text)


def _move_buffers(model: Any, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _adapt(model: Any, linears: list[str], switch: AdapterSwitch) -> dict[str, AdaptedLinear]:
    """Wrap every frozen linear layer, so that it can apply an adapter."""
    layers = {name: AdaptedLinear(name, model.get_submodule(name), switch) for name in linears}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return layers


def _unavailable(name: str, problem: str) -> Failure:
    return Failure(Reason.MODEL_UNAVAILABLE, unusable_model_message(name, problem), "model")
