"""The frozen base model: loaded from a registered directory, with every linear layer but the head adapted.

Weights are read and quantized one tensor at a time, so memory never holds a second copy of the base, nor one in full
precision. Only safetensors are read; no code in the directory is run, and nothing is downloaded.

Letters: T tokens of a batch, D the hidden size, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from app.domain.base_models.catalog import ALTERED_REASON, unusable_model_message
from app.domain.jobs.spec import BaseSpec, QuantizationSpec
from app.domain.jobs.states import Reason
from app.domain.planning.memory import loss_chunk_tokens
from app.system.model_files import hash_directory, stat_signature, weight_files
from worker.trainer.adapter.lora import AdaptedLinear, AdapterSwitch, LoraAdapter
from worker.trainer.adapter.modules_to_save import ModuleToSave
from worker.trainer.data.batch import PackedBatch
from worker.trainer.kernels.kernels import Kernels
from worker.trainer.model.architecture import (
    UnsupportedBase,
    adaptable_names,
    logit_scaling,
    meta_model,
    read_config,
    remove_other_modalities,
)
from worker.trainer.model.checkpoint_tensors import CheckpointNames, CheckpointTensors, WeightLoader, check_complete
from worker.trainer.model.frozen_experts import ExpertStack
from worker.trainer.model.frozen_linear import Frozen4, Frozen8, Frozen16, FrozenLinear, StoredLinear, stored_bytes
from worker.trainer.model.patches import Patches
from worker.trainer.model.recurrent_layers import pack_recurrent_layers
from worker.trainer.model.staged_copy import copier
from worker.trainer.objective.losses import UNSCALED, LogitScaling
from worker.trainer.runtime.failures import Failure
from worker.trainer.runtime.records import Keepalive


@dataclass
class FrozenBase:
    """The frozen base model as it is loaded, with layers that can apply an adapter."""

    name: str
    directory: Path
    model: Any  # a transformers causal language model whose linear layers are AdaptedLinear
    layers: dict[str, AdaptedLinear]
    switch: AdapterSwitch  # selects the adapter that the layers apply
    kernels: Kernels
    compute_dtype: torch.dtype
    patches: Patches  # of the model and of functions that it calls; without them it is transformers' own
    modules_to_save: dict[str, ModuleToSave] = field(default_factory=dict)
    quantization: QuantizationSpec | None = None
    experts: dict[str, ExpertStack] = field(default_factory=dict)  # by the full name of the stacked parameter
    adaptable: frozenset[str] = frozenset()  # full names of the layers that an adapter in PEFT's format can name
    logit_scaling: LogitScaling = UNSCALED
    fused_modules: dict[str, int] = field(default_factory=dict)  # replaced modules by kind
    fused_problem: str = ""  # why there are none
    packs_documents: bool = True  # False: each document runs alone, as its layers carry state over a batch
    # Of each comparison of `check_base`: the largest difference found, and the allowed one.
    margins: dict[str, tuple[float, float]] = field(default_factory=dict)
    recurrence_problem: str = ""  # why flash-linear-attention is installed, but not used
    min_loss_chunk_tokens: int | None = None  # of the execution plan; None: those of the kernels
    skipped_tensors: int = 0  # of other modalities, in the files
    source: str | None = None  # the id on a hub
    revision: str | None = None

    @property
    def adaptable_layers(self) -> dict[str, AdaptedLinear]:
        return {name: layer for name, layer in self.layers.items() if name in self.adaptable}

    @property
    def device(self) -> torch.device:
        return self.kernels.device

    @property
    def loss_chunk_tokens(self) -> int:
        """The labelled tokens whose logits exist at once."""
        min_tokens = self.min_loss_chunk_tokens or self.kernels.min_loss_chunk_tokens
        return loss_chunk_tokens(self.head_V_D.shape[0], min_tokens)

    @property
    def decoder(self) -> Any:
        """The text model without its head."""
        return self.model.get_decoder()

    @property
    def text_config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def decoder_prefix(self) -> str | None:
        """The name of the text model within a model of several modalities; None for a text model."""
        names = {id(module): name for name, module in self.model.named_modules()}
        return names[id(self.decoder)] if self.model.config is not self.text_config else None

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
        experts = sum(each.count * each.in_features * each.out_features for each in self.experts.values())
        return layers + experts + sum(parameter.numel() for parameter in self._other_parameters())

    @property
    def stored_bytes(self) -> int:
        layers: int = sum(stored_bytes(layer.base) for layer in self.layers.values())
        layers += sum(stack.stored_bytes for stack in self.experts.values())
        return layers + sum(parameter.numel() * parameter.element_size() for parameter in self._other_parameters())

    def cache_weights(self, are_cached: bool) -> None:
        """Cache the dequantized weights of quantized layers, in the compute dtype, or free them. Results stay equal.

        Experts are not cached: they are most of a model's weights.
        """
        for layer in self.layers.values():
            if isinstance(layer.base, Frozen4 | Frozen8):
                layer.base.cache_weight(are_cached)

    def _other_parameters(self) -> Iterator[torch.nn.Parameter]:
        others = {id(layer.base.weight) for layer in self.layers.values()} | _placeholders(self.model)
        return (parameter for parameter in self.model.parameters() if id(parameter) not in others)


def open_base(
    spec: BaseSpec,
    quantization: QuantizationSpec | None,
    compute_dtype: torch.dtype,
    kernels: Kernels,
    *,
    keepalive: Keepalive = lambda _: None,
) -> FrozenBase:
    """Check the directory against its registration, then load it. Raises Failure(MODEL_UNAVAILABLE)."""
    _check_files(spec, keepalive)
    base = load_base(spec.name, spec.directory, quantization, compute_dtype, kernels, keepalive=keepalive)
    base.source, base.revision = spec.source, spec.revision
    return base


def load_base(
    name: str,
    directory: Path,
    quantization: QuantizationSpec | None,
    compute_dtype: torch.dtype,
    kernels: Kernels,
    *,
    keepalive: Keepalive = lambda _: None,
) -> FrozenBase:
    """Load a causal language model with frozen linear layers and no adapter. Raises Failure(MODEL_UNAVAILABLE)."""
    try:
        config = read_config(directory)
        model = meta_model(config, compute_dtype)
        names = CheckpointNames(model)
        removed = remove_other_modalities(model)
        tensors = CheckpointTensors(names, removed, weight_files(directory))
        if tensors.doubled:
            raise UnsupportedBase(f"{tensors.doubled[0]} is in more than one file")
        adaptable = frozenset(adaptable_names(model))
        loader = WeightLoader(model, quantization, compute_dtype)
        copy = copier(kernels.device)
        for key, tensor in tensors:
            keepalive("loading the base model")
            loader.assign(key, copy(tensor))
        model.tie_weights()
        check_complete(model)
    except UnsupportedBase as error:
        text = f"The base model {name} cannot be used: {error}. Choose another base model."
        raise Failure(Reason.MODEL_UNAVAILABLE, text, "model") from error
    for module in model.modules():
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else buffer.to(kernels.device)
    model.eval().requires_grad_(False)  # disables the dropout of the base model; the adapter's is separate
    layers = {layer: AdaptedLinear(layer, model.get_submodule(layer), loader.switch) for layer in loader.linears}
    for layer, adapted in layers.items():
        model.set_submodule(layer, adapted)
    pack_recurrent_layers(model)
    patches = Patches()
    fused, fused_problem = kernels.replace_functions(model, compute_dtype, patches, keepalive)
    return FrozenBase(
        name,
        directory,
        model,
        layers,
        loader.switch,
        kernels,
        compute_dtype,
        patches,
        experts={name: loader.experts[name] for name, _ in model.named_parameters() if name in loader.experts},
        adaptable=adaptable,
        logit_scaling=logit_scaling(config.get_text_config()),
        skipped_tensors=tensors.skipped,
        quantization=quantization,
        fused_modules=fused,
        fused_problem=fused_problem,
    )


def hidden_states(
    base: FrozenBase,
    batch: PackedBatch,
    adapter: LoraAdapter | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the last hidden state of every token (T x D), of the base model or of the model with `adapter`.

    With a `dtype` the hidden states have that dtype throughout, with the same weights; see `in_dtype`.
    """
    lengths = [batch.document_lengths] if base.packs_documents else [(length,) for length in batch.document_lengths]
    sizes = [sum(part) for part in lengths]
    parts = zip(torch.split(batch.tokens_T, sizes), torch.split(batch.positions_T, sizes), lengths, strict=True)
    with base.switch.on(adapter):
        hidden = [_decode(base, *part, dtype) for part in parts]
    return hidden[0] if len(hidden) == 1 else torch.cat(hidden)


def _decode(
    base: FrozenBase,
    tokens_T: torch.Tensor,
    positions_T: torch.Tensor,
    document_lengths: tuple[int, ...],
    dtype: torch.dtype | None,
) -> torch.Tensor:
    def embedded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if dtype is None else tensor.to(dtype)

    tokens_1_T, decoder = tokens_T.unsqueeze(0), base.decoder
    options: dict[str, Any] = {}
    if getattr(base.text_config, "hidden_size_per_layer_input", 0):  # each layer has its own embedding (Gemma 3n and 4)
        options["per_layer_inputs"] = embedded(decoder.get_per_layer_inputs(tokens_1_T))
    hidden_1_T_D: torch.Tensor = decoder(
        inputs_embeds=embedded(base.model.get_input_embeddings()(tokens_1_T)),
        position_ids=positions_T.unsqueeze(0),
        use_cache=False,
        document_lengths=document_lengths,
        **options,
    ).last_hidden_state
    return hidden_1_T_D[0]


@contextmanager
def in_dtype(base: FrozenBase, dtype: torch.dtype, part: torch.nn.Module | None = None) -> Iterator[None]:
    """Convert norms, biases, routers and convolutions in the block: the model accepts hidden states of this dtype.

    With `part` only those of that module.
    Embeddings, the head and frozen layers keep their dtype; each is converted for its product only.
    """
    kept = {id(layer.base.weight) for layer in base.layers.values()} | _placeholders(base.model)
    embeddings = [module for module in base.model.modules() if isinstance(module, torch.nn.Embedding)]
    embeddings += [base.model.get_output_embeddings()]  # also those that are fully trained
    kept |= {id(parameter) for module in embeddings for parameter in module.parameters()}
    others = [parameter for parameter in (part or base.model).parameters() if id(parameter) not in kept]
    originals = [parameter.data for parameter in others]
    try:
        for parameter in others:
            parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for parameter, data in zip(others, originals, strict=True):
            parameter.data = data


def stored_layers(base: FrozenBase) -> dict[str, StoredLinear] | None:
    """Return the quantized layers with the weights of the model's files, by name.

    None if a weight has no tensor of its own in the files: the experts of some models, which are converted.
    """
    quantized = {name: layer.base for name, layer in base.layers.items() if not isinstance(layer.base, Frozen16)}
    if not quantized:
        return {}
    names, stored = CheckpointNames(meta_model(read_config(base.directory), base.compute_dtype)), {}
    for path in weight_files(base.directory):
        with safe_open(path, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118  not a dictionary
                target, pattern = names.target(key)
                layer = target.removesuffix(".weight")
                if pattern is None and layer in quantized:
                    stored[layer] = StoredLinear(quantized[layer], path, key, base.device)
    return None if base.experts or stored.keys() != quantized.keys() else stored


@contextmanager
def in_place(base: FrozenBase, layers: Mapping[str, FrozenLinear]) -> Iterator[None]:
    """Have the adapted layers of these names use these frozen layers in the block."""
    with Patches() as patches:
        for name, layer in layers.items():
            patches.put_module(base.model, f"{name}.base", layer)
        yield


@contextmanager
def unwrapped(base: FrozenBase) -> Iterator[Any]:
    """Yield transformers' own model, without our patches and wrappers, as PEFT expects it."""
    with base.patches.undone(), Patches() as unwrapping:
        for name in [*base.layers, *base.modules_to_save]:
            module = base.model.get_submodule(name)
            frozen = getattr(module, "base" if isinstance(module, AdaptedLinear) else "frozen", module)
            unwrapping.put_module(base.model, name, frozen)
        yield base.model


def _check_files(spec: BaseSpec, keepalive: Keepalive) -> None:
    """Hash the files, unless the worker has done so and they have not changed since (by their stat signature)."""
    problem = ALTERED_REASON
    try:
        if spec.signature is not None and spec.signature == stat_signature(spec.directory):
            return
        if hash_directory(spec.directory, lambda: keepalive("hashing the base model"))[1] == spec.manifest_sha256:
            return
    except OSError as error:
        problem = f"its directory cannot be read ({error.strerror})"
    raise Failure(Reason.MODEL_UNAVAILABLE, unusable_model_message(spec.name, problem), "model")


def _placeholders(model: Any) -> set[int]:
    """Return the ids of the parameters that stand for frozen experts and need no memory."""
    modules = (module for module in model.modules() if hasattr(module, "frozen_experts"))
    return {id(module._parameters.get(name)) for module in modules for name in module.frozen_experts}
