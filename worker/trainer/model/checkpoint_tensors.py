"""The tensors of a model directory under the names of the model in memory.

Names and layouts of a checkpoint may differ from those of the class that transformers loads: prefixes of multimodal
checkpoints, experts in one tensor each. transformers' own table of conversions is used. At most the tensors of one
conversion (the experts of a layer) are in memory at a time.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from app.domain.jobs.spec import QuantizationSpec
from worker.trainer.adapter.lora import AdapterSwitch
from worker.trainer.model.architecture import UnsupportedBase, linear_names
from worker.trainer.model.experts import freeze_experts, is_experts_parameter
from worker.trainer.model.frozen_experts import ExpertStack
from worker.trainer.model.frozen_linear import freeze
from worker.trainer.runtime.device import dtype_name
from worker.trainer.runtime.failures import is_out_of_memory

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
IGNORED = r"rotary_emb\.inv_freq"


class Source(NamedTuple):
    """A tensor of a file."""

    key: str
    path: Path
    pattern: str | None  # the pattern of the conversion that it belongs to, if any


class CheckpointNames:
    """The names of a checkpoint's tensors in `model`, which is complete: with the modules of all modalities."""

    def __init__(self, model: Any) -> None:
        transforms = get_model_conversion_mapping(model)
        self._model = model
        self._renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        self._converters = [each for each in transforms if isinstance(each, WeightConverter)]
        self.expected: dict[str, torch.Tensor] = model.state_dict()
        self.ignored = re.compile("|".join([IGNORED, *(model._keys_to_ignore_on_load_unexpected or ())]))

    def target(self, key: str) -> tuple[str, str | None]:
        """Return the name in the model, and the pattern of the conversion that makes it from several tensors."""
        prefix = self._model.base_model_prefix
        name, pattern = rename_source_key(key, self._renamings, self._converters, prefix, self.expected)
        if name not in self.expected and key in self.expected:
            return key, None
        return name, pattern

    def convert(self, target: str, tensors: list[tuple[Source, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return the model's tensors that a conversion makes. Raises UnsupportedBase if they do not fit together."""
        pattern = tensors[0][0].pattern
        converter = deepcopy(next(each for each in self._converters if pattern in each.source_patterns))
        for source, tensor in tensors:
            assert source.pattern is not None
            converter.add_tensor(target, source.key, source.pattern, tensor)
        try:
            converted = converter.convert(target, model=self._model, config=self._model.config)
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise UnsupportedBase(f"the tensors that make {target} do not fit together ({error})") from error
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}


class CheckpointTensors:
    """The tensors of the weight files `paths` that the text model has. Raises UnsupportedBase for an unknown one."""

    def __init__(self, names: CheckpointNames, removed: set[str], paths: list[Path]) -> None:
        """`removed` are the full names of the modules of other modalities, whose tensors are skipped."""
        self._names = names
        self.skipped = 0
        self._direct: dict[Path, list[tuple[str, str]]] = {path: [] for path in paths}
        self.converted: dict[str, list[Source]] = defaultdict(list)  # what makes each converted tensor, by its name
        self.keys: list[str] = []  # in all files
        self.targets: set[str] = set()  # names in the model
        removed_parts = {name.rpartition(".")[2] for name in removed}
        for path in paths:
            with open_weights(path) as file:
                for key in sorted(file.keys(), key=dot_natural_key):
                    self._add(Source(key, path, None), removed, removed_parts)

    @property
    def doubled(self) -> list[str]:
        """The names that are in more than one file."""
        return [key for key, count in Counter(self.keys).items() if count > 1]

    def _add(self, source: Source, removed: set[str], removed_parts: set[str]) -> None:
        self.keys.append(source.key)
        target, pattern = self._names.target(source.key)
        if any(target.startswith(f"{name}.") for name in removed) or removed_parts & set(source.key.split(".")):
            self.skipped += 1
        elif target not in self._names.expected:
            if not self._names.ignored.search(source.key):
                raise UnsupportedBase(
                    f"{source.path.name} contains {source.key}, which {type(self._names._model).__name__} does not have"
                )
        elif pattern is not None:
            self.targets.add(target)
            self.converted[target].append(source._replace(pattern=pattern))
        else:
            self.targets.add(target)
            self._direct[source.path].append((source.key, target))

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for path, keys in self._direct.items():
            with open_weights(path) as file:
                for key, target in keys:
                    yield target, file.get_tensor(key)
        for target, sources in self.converted.items():
            tensors = []
            for source in sources:
                with open_weights(source.path) as file:
                    tensors.append((source, file.get_tensor(source.key)))
            yield from self._names.convert(target, tensors).items()


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Open a weight file; turn a missing or broken one into UnsupportedBase."""
    if not path.exists():
        raise UnsupportedBase(f"its file {path.name} is missing")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedBase(f"{path.name} is damaged ({error})") from error


class WeightLoader:
    """Puts tensors into the model; weights of linear layers and of experts become frozen layers."""

    def __init__(self, model: Any, quantization: QuantizationSpec | None, compute_dtype: torch.dtype) -> None:
        self.linears = linear_names(model)
        self.switch = AdapterSwitch()
        self.experts: dict[str, ExpertStack] = {}
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
