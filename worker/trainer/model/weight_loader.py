"""Put the tensors of a checkpoint into a model, and freeze the weights of its linear layers and experts."""

from __future__ import annotations

from typing import Any

import torch

from app.domain.jobs.spec import QuantizationSpec
from worker.trainer.adapter.lora import AdapterSwitch
from worker.trainer.model.architecture import UnsupportedBase, linear_names
from worker.trainer.model.checkpoint_tensors import FLOATS
from worker.trainer.model.experts import ExpertWeights, freeze_experts, is_experts_parameter
from worker.trainer.model.frozen_linear import freeze
from worker.trainer.runtime.device import dtype_name


class WeightLoader:
    """Puts tensors into the model; weights of linear layers and of experts become frozen layers."""

    def __init__(self, model: Any, quantization: QuantizationSpec | None, compute_dtype: torch.dtype) -> None:
        self.linears = linear_names(model)
        self.switch = AdapterSwitch()
        self.experts: dict[str, ExpertWeights] = {}
        self._model = model
        self._format = quantization, compute_dtype
        self._is_linear = set(self.linears)

    def assign(self, key: str, tensor: torch.Tensor) -> None:
        """Put a tensor into the model. Raises UnsupportedBase if its shape or the kind of its dtype differ."""
        module_name, _, parameter = key.rpartition(".")
        module = self._model.get_submodule(module_name)
        expected = getattr(module, parameter)
        if expected.shape != tensor.shape:
            text = f"{key} has the shape {list(tensor.shape)}, but config.json makes it {list(expected.shape)}"
            raise UnsupportedBase(text)
        if expected.is_floating_point() and tensor.dtype not in FLOATS:
            raise UnsupportedBase(f"{key} is stored as {dtype_name(tensor.dtype)}, not as floats of 16 bits or more")
        if module_name in self._is_linear and parameter == "weight":
            layer: Any = freeze(tensor, *self._format)
            layer.bias = module.bias  # loaded before or still on `meta`: files have their tensors in any order
            self._model.set_submodule(module_name, layer)
        elif is_experts_parameter(module, parameter):
            self.experts[key] = freeze_experts(module, parameter, key, tensor, self.switch, *self._format)
        else:
            constant = torch.nn.Parameter(tensor.to(expected.dtype, copy=True), requires_grad=False)
            setattr(module, parameter, constant if parameter in module._parameters else constant.data)


def check_complete(model: Any) -> None:
    """Raises UnsupportedBase if the files had no tensor for a parameter."""
    missing = [key for key, parameter in model.named_parameters() if parameter.device.type == "meta"]
    if missing:
        text = f"its files lack {len(missing)} of the weights that {type(model).__name__} needs, such as {missing[0]}"
        raise UnsupportedBase(text)
