"""modules_to_save: modules that are fully trained and saved with A and B, such as norms, the embedding and the head.

The adapter has float32 masters of their weights. The module in the model keeps its own weights unchanged; with an
active adapter it computes with the masters, cast to the dtype of its weights. Names match as in PEFT: every module
whose full name *ends* with the name, so "norm" matches every norm. If the base has one matrix for embedding and head,
each that is named gets its own matrix, as in PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.func import functional_call

from app.domain.jobs.states import Reason
from worker.trainer.adapter.lora import AdaptedLinear, AdapterSwitch, LoraAdapter
from worker.trainer.runtime.failures import Failure


class ModuleToSave(torch.nn.Module):
    """Takes the place of a module in the model; without an active adapter it equals it to the bit."""

    def __init__(self, name: str, frozen: torch.nn.Module, switch: AdapterSwitch) -> None:
        super().__init__()
        self.name = name
        self.frozen = frozen
        self._switch = switch

    @property
    def weight(self) -> Any:
        """The weight of the base model: code outside reads this attribute of an embedding or a head."""
        return self.frozen.weight

    def master(self, adapter: LoraAdapter, parameter: str) -> torch.nn.Parameter:
        """Return the adapter's float32 master of a parameter."""
        return adapter.module_masters[f"{self.name}.{parameter}"]

    def forward(self, *inputs: Any) -> Any:
        adapter = self._switch.active
        if adapter is None:
            return self.frozen(*inputs)
        names = self.frozen.named_parameters()
        trained = {name: self.master(adapter, name).to(parameter.dtype) for name, parameter in names}
        return functional_call(self.frozen, trained, inputs)


def train_modules_to_save(
    model: Any, names: Sequence[str], adapter: LoraAdapter, switch: AdapterSwitch
) -> dict[str, ModuleToSave]:
    """Replace each named module by a ModuleToSave, and add its masters to the adapter.

    Returns the new modules by their full names. Raises Failure for a name that matches no module, and for modules that
    cannot be fully trained: frozen linear layers, and modules with submodules.
    """
    modules = _named_modules(model)
    selected: dict[str, torch.nn.Module] = {}
    for name in names:
        matches = {full_name: module for full_name, module in modules.items() if full_name.endswith(name)}
        allowed = ", ".join(trainable_names(model))
        if not matches:
            raise _invalid_modules(f"the base model has no module whose name ends with {name!r}; it has {allowed}")
        for full_name, module in matches.items():
            if isinstance(module, AdaptedLinear):
                raise _invalid_modules(
                    f"{name!r} matches {full_name}, a frozen linear layer. Add it to lora.target_modules instead, or "
                    f"name one of {allowed}"
                )
            if not _is_trainable(module):
                raise _invalid_modules(
                    f"{name!r} matches {full_name}, which has submodules or no weights; name one of {allowed}"
                )
        selected |= matches
    replaced = {full_name: ModuleToSave(full_name, module, switch) for full_name, module in selected.items()}
    for full_name, module in replaced.items():
        for parameter_name, parameter in module.frozen.named_parameters():
            master = parameter.detach().to(torch.float32, copy=True)
            adapter.module_masters[f"{full_name}.{parameter_name}"] = torch.nn.Parameter(master)
        model.set_submodule(full_name, module)
    return replaced


def trainable_names(model: Any) -> list[str]:
    """Return the last parts of the names of the modules that can be fully trained, sorted."""
    return sorted({name.rpartition(".")[2] for name, module in _named_modules(model).items() if _is_trainable(module)})


def _named_modules(model: Any) -> dict[str, torch.nn.Module]:
    """Return the modules by name, as PEFT sees them: without the frozen layers in our adapted ones."""
    frozen = {id(layer.base) for layer in model.modules() if isinstance(layer, AdaptedLinear)}
    return {name: module for name, module in model.named_modules() if name and id(module) not in frozen}


def _is_trainable(module: torch.nn.Module) -> bool:
    has_experts = hasattr(module, "frozen_experts")  # lora.target_parameters adapts them
    return not has_experts and not any(module.children()) and any(True for _ in module.parameters())


def _invalid_modules(problem: str) -> Failure:
    return Failure(Reason.INVALID_SPEC, f"lora.modules_to_save: {problem}.", "lora.modules_to_save")
