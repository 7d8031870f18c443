"""Merge an adapter into its base model: `python -m worker.trainer.merge BASE_DIR ADAPTER_DIR OUT_DIR`.

W' = W + scale * B A, with DoRA (m / ||W'||) * W' by rows, in float32 with the base's own weights, rounded once to the
dtype of the base. One tensor is in memory at a time, and the result has the same shards as the base. modules_to_save
replace those of the base. If the base has one matrix for embedding and head and either was trained, they become two
matrices and config.json unties them. An adapter trained on a quantized base is merged into the weights before
quantization: the result differs from the trained model by the rounding of the base.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from app.domain.artifacts.full_disk import is_disk_full
from app.domain.jobs.layer_patterns import PatternError, expand_patterns, scale_of
from app.domain.jobs.spec import LoraSpec
from app.domain.jobs.states import ExitCode
from app.system.artifact_directory import (
    ADAPTER_WEIGHTS,
    MANIFEST,
    ManifestMismatch,
    published,
    sha256_file,
    verify,
    write_manifest,
)
from app.system.files import write_json
from app.system.model_files import INDEX, hash_directory, weight_files
from worker.trainer.adapter.lora import PEFT_PREFIX
from worker.trainer.checkpoint.model_card import merged_card
from worker.trainer.model.architecture import meta_model, read_config
from worker.trainer.model.checkpoint_tensors import CheckpointNames
from worker.trainer.runtime.process import die_with_parent

FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them


class CannotMerge(Exception):
    """The message says what was seen and what to do."""


class OtherBase(CannotMerge):
    """The base model's files are not those that the adapter was trained on, or cannot be read."""


class Shard(NamedTuple):
    """One safetensors file."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, dict[str, Any]]  # the entries of its header, in the order of their bytes


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print("usage: python -m worker.trainer.merge BASE_DIR ADAPTER_DIR OUT_DIR", file=sys.stderr)
        return ExitCode.BAD_SPEC
    die_with_parent()
    try:
        manifest = merge(*map(Path, arguments))
    except CannotMerge as error:
        print(error, file=sys.stderr)
        return ExitCode.OTHER_BASE if isinstance(error, OtherBase) else ExitCode.BAD_SPEC
    except OSError as error:
        print(f"The merged model cannot be written: {error.strerror or error}.", file=sys.stderr)
        return ExitCode.DISK_FULL if is_disk_full(error) else ExitCode.STORAGE
    print(json.dumps({"directory": arguments[2], **manifest["merged"]}))
    return ExitCode.DONE


def merge(base: Path, adapter: Path, destination: Path) -> dict[str, Any]:
    """Write the merged model to `destination`, completely or not at all, and return its manifest.

    Raises CannotMerge, OSError.
    """
    adapter_manifest = _check(base, adapter, destination)
    shards = [_read_header(path) for path in weight_files(base)]
    with published(destination) as directory:
        with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt", device="cpu") as trained:
            model = meta_model(read_config(base), torch.float32)
            names = CheckpointNames(model)
            model_names = {name: names.target(name)[0] for shard in shards for name in shard.tensors}
            lora = _lora_by_layer(adapter_manifest, shards, model_names)
            weights = _MergedWeights(model, lora, shards, trained, model_names)
            weights.check()
            for shard in weights.shards:
                _write_shard(directory / shard.path.name, shard, weights.tensor)
        _copy_other_files(base, directory, weights)
        manifest = {
            "base_model": adapter_manifest["base_model"],
            "adapter": {key: value for key, value in adapter_manifest.items() if key not in ("files", "base_model")}
            | {"manifest_sha256": sha256_file(adapter / MANIFEST)},
            "merged": {"tensors": sum(len(shard.tensors) for shard in weights.shards), "changed": len(weights.changed)},
        }
        (directory / "README.md").write_text(merged_card(manifest), encoding="utf-8")
        write_manifest(directory, manifest)
        return manifest


def _check(base: Path, adapter: Path, destination: Path) -> dict[str, Any]:
    """Verify the adapter and its base, and return the adapter's manifest. Raises CannotMerge."""
    if destination.exists():
        raise CannotMerge(f"{destination} exists already. Choose another directory, or remove it.")
    try:
        manifest = verify(adapter)
        base_sha256 = hash_directory(base)[1]
    except ManifestMismatch as error:
        raise CannotMerge(f"The adapter is damaged: {error}. Download it again.") from error
    except OSError as error:
        raise OtherBase(f"The base model's directory {base} cannot be read: {error.strerror}.") from error
    expected = manifest.get("base_model")
    if expected is None or "lora" not in manifest:
        raise CannotMerge(f"The manifest in {adapter} does not name the base model and the LoRA settings.")
    if base_sha256 != expected["manifest_sha256"]:
        raise OtherBase(
            f"The files in {base} are not the base model {expected['name']} of the adapter: their hash is "
            f"{base_sha256[:12]} instead of {expected['manifest_sha256'][:12]}. Name the registered directory."
        )
    return manifest


def _lora_by_layer(manifest: dict[str, Any], shards: list[Shard], model_names: dict[str, str]) -> LoraSpec:
    """Return the LoRA settings with patterns by layer; older manifests have the patterns of the request.

    Raises CannotMerge.
    """
    shapes = {model_names[name]: entry["shape"] for shard in shards for name, entry in shard.tensors.items()}
    layers = {name.removesuffix(".weight"): (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}
    try:
        return expand_patterns(LoraSpec.model_validate(manifest["lora"]), layers)
    except PatternError as error:
        raise CannotMerge(f"The adapter's patterns cannot be matched with the base model's layers: {error}.") from error


class _MergedWeights:
    """The tensors of the merged model; each is computed when `tensor` is called."""

    def __init__(
        self, model: Any, lora: LoraSpec, shards: list[Shard], trained: Any, model_names: dict[str, str]
    ) -> None:
        """`model` has no weights; `model_names` are the names in it, and so in the adapter, of the files' tensors."""
        self._lora = lora
        self._trained = trained
        self._trained_names = {name.removeprefix(PEFT_PREFIX) for name in trained.keys()}  # noqa: SIM118  no dictionary
        self._paths = {name: shard.path for shard in shards for name in shard.tensors}
        self._model_names = model_names
        self._copied: dict[str, str] = {}  # the tensor of the files that another one begins as
        self.shards = shards
        tied = _tied_names(model)
        self.unties = not self._trained_names.isdisjoint(tied)
        if self.unties:
            self._untie(*tied)
        self.changed = {
            name
            for name, of_model in self._model_names.items()
            if not self._trained_names.isdisjoint((of_model, re.sub(r"\.weight$", ".lora_A.weight", of_model)))
        }

    def _untie(self, embedding: str, head: str) -> None:
        """Give the head a tensor of its own."""
        in_files = {model_name: name for name, model_name in self._model_names.items()}
        source, name = in_files[embedding], in_files.get(head, head)
        self._copied[name] = source
        if name not in self._paths:
            header = next(shard.tensors[source] for shard in self.shards if source in shard.tensors)
            *others, last = self.shards
            self.shards = [*others, last._replace(tensors=last.tensors | {name: header})]
            self._model_names = self._model_names | {name: head}

    def check(self) -> None:
        """Raises CannotMerge unless every tensor of the adapter belongs to a floating-point tensor of the base."""
        names = set(self._model_names.values())
        parts = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
        possible_names = names | {f"{name.removesuffix('.weight')}.{part}" for name in names for part in parts}
        if self._lora.adapts_experts:
            raise CannotMerge("The adapter adapts experts, which only PEFT merges: PeftModel.merge_and_unload().")
        if unmatched := sorted(self._trained_names - possible_names):
            raise CannotMerge(
                f"The adapter has {PEFT_PREFIX}{unmatched[0]}, which matches no tensor of the base model's files."
            )
        for name, entry in ((name, entry) for shard in self.shards for name, entry in shard.tensors.items()):
            if name in self.changed and entry["dtype"] not in FLOATS:
                raise CannotMerge(f"{name} of the base model is stored as {entry['dtype']}; only floats can be merged.")

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the merged model, in the dtype of the base's tensor."""
        source = self._copied.get(name, name)
        with safe_open(self._paths[source], framework="pt", device="cpu") as file:
            tensor: torch.Tensor = file.get_tensor(source)
        if name not in self.changed:
            return tensor
        model_name = self._model_names[name]
        if model_name in self._trained_names:
            return self._get(model_name).to(tensor.dtype)
        layer, W_D_K = model_name.removesuffix(".weight"), tensor.float()
        A_R_K, B_D_R = self._get(f"{layer}.lora_A.weight"), self._get(f"{layer}.lora_B.weight")
        W_D_K.addmm_(B_D_R, A_R_K, alpha=scale_of(self._lora, layer))
        if self._lora.use_dora:
            W_D_K.mul_((self._get(f"{layer}.lora_magnitude_vector") / W_D_K.norm(dim=1))[:, None])
        return W_D_K.to(tensor.dtype)

    def _get(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._trained.get_tensor(PEFT_PREFIX + name)
        return tensor


def _tied_names(model: Any) -> tuple[str, ...]:
    """Return the names of embedding and head if the model ties them."""
    if not model.config.tie_word_embeddings:
        return ()
    names = {id(module): name for name, module in model.named_modules()}
    return tuple(
        f"{names[id(module)]}.weight" for module in (model.get_input_embeddings(), model.get_output_embeddings())
    )


def _read_header(path: Path) -> Shard:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header.pop("__metadata__", {})
    return Shard(path, metadata, dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"])))


def _size_bytes(entry: dict[str, Any]) -> int:
    start, end = entry["data_offsets"]
    return int(end - start)


def _write_shard(path: Path, shard: Shard, tensor: Callable[[str], torch.Tensor]) -> None:
    """Write a safetensors file tensor by tensor: the writer of the library needs all tensors in memory."""
    header: dict[str, Any] = {"__metadata__": shard.metadata}
    offset = 0
    for name, entry in shard.tensors.items():
        end = offset + _size_bytes(entry)
        header[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shard.tensors:
            file.write(tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _copy_other_files(base: Path, directory: Path, weights: _MergedWeights) -> None:
    """Copy configuration, tokenizer, chat template and licence; update the index and, if untied, config.json."""
    for path in sorted(base.iterdir()):
        is_weights = path.suffix == ".safetensors" or path.name == INDEX
        is_replaced = path.name in ("README.md", MANIFEST)
        if path.is_file() and not path.name.startswith(".") and not is_weights and not is_replaced:
            shutil.copyfile(path, directory / path.name)
    if (base / INDEX).exists():
        index = json.loads((base / INDEX).read_text(encoding="utf-8"))
        index["weight_map"] = {name: shard.path.name for shard in weights.shards for name in shard.tensors}
        sizes = [_size_bytes(entry) for shard in weights.shards for entry in shard.tensors.values()]
        index["metadata"] = {**index.get("metadata", {}), "total_size": sum(sizes)}
        write_json(directory / INDEX, index)
    if weights.unties:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        write_json(directory / "config.json", config | {"tie_word_embeddings": False})


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
