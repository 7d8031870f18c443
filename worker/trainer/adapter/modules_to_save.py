"""modules_to_save: modules that are trained whole and saved beside A and B: norms, the embedding, the head.

The masters are float32 and belong to the adapter; the module in the model keeps its own weights, as they are, and
computes with the masters, cast to their dtype, where the adapter is on. Names are read as PEFT reads
them: a module whose full name *ends* with the name, so "norm" is every norm. Where the embedding and the head are one
matrix in the base, each that is named becomes a matrix of its own, as in PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.func import functional_call

from app.domain.jobs.states import Reason
from worker.trainer.adapter.lora import AdaptedLinear, Adapter, AdapterSwitch
from worker.trainer.runtime.failures import Failure


class ModuleToSave(torch.nn.Module):
    """Stands where a module stood; with the adapter switched off it is that module, to the bit."""

    def __init__(self, name: str, frozen: torch.nn.Module, switch: AdapterSwitch) -> None:
        super().__init__()
        self.name = name
        self.frozen = frozen
        self._switch = switch

    @property
    def weight(self) -> Any:
        """The base model's own, which is what others look for at an embedding or a head."""
        return self.frozen.weight

    def master(self, adapter: Adapter, parameter: str) -> torch.nn.Parameter:
        return adapter.module_masters[f"{self.name}.{parameter}"]

    def forward(self, *inputs: Any) -> Any:
        adapter = self._switch.active
        if adapter is None:
            return self.frozen(*inputs)
        names = self.frozen.named_parameters()
        trained = {name: self.master(adapter, name).to(parameter.dtype) for name, parameter in names}
        return functional_call(self.frozen, trained, inputs)


def train_modules_to_save(
    model: Any, names: Sequence[str], adapter: Adapter, switch: AdapterSwitch
) -> dict[str, ModuleToSave]:
    """Put a ModuleToSave in the place of each module that is named, and its masters into the adapter.

    Returns them by their full names. Raises Failure for a name that fits nothing, and for modules that can't be trained
    whole: linear layers of the frozen base, and modules that have others inside.
    """
    modules = _modules(model)
    chosen: dict[str, torch.nn.Module] = {}
    for name in names:
        fitting = {full: module for full, module in modules.items() if full.endswith(name)}
        _check(name, fitting, modules)
        chosen |= fitting
    replaced = {full: ModuleToSave(full, module, switch) for full, module in chosen.items()}
    for full, module in replaced.items():
        for parameter_name, parameter in module.frozen.named_parameters():
            master = parameter.detach().to(torch.float32, copy=True)
            adapter.module_masters[f"{full}.{parameter_name}"] = torch.nn.Parameter(master)
        model.set_submodule(full, module)
    return replaced


def _modules(model: Any) -> dict[str, torch.nn.Module]:
    """As PEFT finds them: without what lies inside our adapted layers."""
    inside = {id(layer.base) for layer in model.modules() if isinstance(layer, AdaptedLinear)}
    return {name: module for name, module in model.named_modules() if name and id(module) not in inside}


def _check(name: str, fitting: dict[str, torch.nn.Module], modules: dict[str, torch.nn.Module]) -> None:
    offered = ", ".join(sorted({full.rpartition(".")[2] for full, module in modules.items() if _is_offered(module)}))
    if not fitting:
        raise _refused(f"the base model has no module whose name ends with {name!r}; it has {offered}")
    for full, module in fitting.items():
        if isinstance(module, AdaptedLinear):
            raise _refused(
                f"{name!r} fits {full}, a frozen linear layer, which lora.target_modules adapts; name {offered}"
            )
        if not _is_offered(module):
            raise _refused(f"{name!r} fits {full}, which has modules inside or no weights; name {offered}")


def _is_offered(module: torch.nn.Module) -> bool:
    return not any(module.children()) and any(True for _ in module.parameters())


def _refused(why: str) -> Failure:
    return Failure(Reason.INVALID_SPEC, f"lora.modules_to_save: {why}.", "lora.modules_to_save")
