"""The size of an adapter: its trained parameters, and what it saves for the backward. Letters as in `memory`."""

from __future__ import annotations

from app.domain.base_models.catalog import IGNORED_LAYERS, CatalogEntry
from app.domain.jobs.layer_patterns import rank_of
from app.domain.jobs.spec import LoraSpec


def trained_parameters(entry: CatalogEntry, lora: LoraSpec) -> int:
    """P, DoRA's magnitudes, and the fully trained matrices; fully trained norms are negligible."""
    magnitudes = entry.decoder_layers * _outputs(entry, lora) if lora.use_dora else 0
    matrices = sum(name in IGNORED_LAYERS for name in fully_trained_modules(entry, lora))
    return adapter_parameters(entry, lora) + magnitudes + matrices * entry.vocab_size * entry.hidden_size


def adapter_parameters(entry: CatalogEntry, lora: LoraSpec) -> int:
    """P: r x (inputs + outputs) of all target layers; rank patterns apply if the entry lists the layers."""
    experts = sum(lora.r * count * (out + width) for count, out, width in _adapted_experts(entry, lora))
    if targets := _targets(entry, lora):
        return experts + sum(rank_of(lora, name) * sum(shape) for name, shape in targets.items())
    return experts + entry.decoder_layers * sum(
        lora.r * sum(entry.target_modules[name]) for name in lora.target_modules
    )


def ranks_of_layer(entry: CatalogEntry, lora: LoraSpec) -> float:
    """The sum of the ranks of a decoder layer's targets, averaged over the layers."""
    if lora.rank_pattern and (targets := _targets(entry, lora)):
        return sum(rank_of(lora, name) for name in targets) / max(1, entry.decoder_layers)
    return lora.r * len(lora.target_modules)


def fully_trained_modules(entry: CatalogEntry, lora: LoraSpec) -> list[str]:
    """The last names of the fully trained modules; "norm" matches every norm, as in PEFT."""
    suffixes = tuple(name.rpartition(".")[2] for name in lora.modules_to_save)
    return [name for name in entry.whole_modules if name.endswith(suffixes)] if suffixes else []


def adapter_bytes_per_token(entry: CatalogEntry, lora: LoraSpec, width: int, draws_masks_again: bool = False) -> int:
    """Bytes per token that the adapter of one layer saves: A x, dropout masks, and with DoRA W x and B A x.

    Adapted experts also keep the inputs of each product, for each expert of the token.
    """
    magnitudes = 2 * _outputs(entry, lora) if lora.use_dora else 0
    has_masks = lora.dropout and (lora.use_dora or not draws_masks_again)
    masks = sum(entry.target_modules[name][1] for name in lora.target_modules) if has_masks else 0
    of_experts = sum(count * (inputs + lora.r) for count, _, inputs in _adapted_experts(entry, lora))
    numbers = ranks_of_layer(entry, lora) + entry.active_experts * of_experts / max(1, entry.decoder_layers)
    return int(width * numbers) + width * magnitudes + masks


def trained_norm_bytes_per_token(entry: CatalogEntry, lora: LoraSpec, width: int) -> int:
    """Bytes per token that a layer keeps with elementwise recomputation, because a fully trained norm has none."""
    return 2 * width * entry.hidden_size if set(fully_trained_modules(entry, lora)) - IGNORED_LAYERS else 0


def _adapted_experts(entry: CatalogEntry, lora: LoraSpec) -> list[tuple[int, int, int]]:
    """[experts, out, in] of the adapted stacks of experts, as far as the entry lists them."""
    return [
        shape
        for name, shape in entry.experts.items()
        if lora.experts or any(name.endswith(f".{target}") for target in lora.target_parameters)
    ]


def _targets(entry: CatalogEntry, lora: LoraSpec) -> dict[str, tuple[int, int]]:
    """{full name: [out, in]} of the target layers; empty if the entry does not list the layers."""
    return {name: shape for name, shape in entry.layers.items() if name.split(".")[-1] in lora.target_modules}


def _outputs(entry: CatalogEntry, lora: LoraSpec) -> int:
    """The outputs of all targets of a decoder layer."""
    return sum(entry.target_modules[name][0] for name in lora.target_modules)
