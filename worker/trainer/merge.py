"""Adapter and base -> an ordinary model directory: `python -m worker.trainer.merge BASE_DIR ADAPTER_DIR OUT_DIR`.

W' = W + scale * B A, with DoRA (m / ||W'||) * W' by rows, in float32 on the base's own weights and rounded once, to the
dtype that the base is stored in. One tensor is in memory at a time, and the files are cut as the base's are.
modules_to_save take the place of the base's; an embedding and a head that the base keeps as one matrix become two where
either was trained, which config.json then says. An adapter trained on a quantised base is merged into the weights
before quantisation: the model that was trained but for the rounding of its base.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from app.domain.artifacts.full_disk import is_disk_full
from app.domain.jobs.layer_patterns import PatternError, by_layer, scale_of
from app.domain.jobs.spec import LoraSpec
from app.domain.jobs.states import ExitCode
from app.system.artifact_directory import (
    ADAPTER_WEIGHTS,
    MANIFEST,
    ManifestMismatch,
    publish,
    sha256_file,
    verify,
    write_manifest,
)
from app.system.model_files import INDEX, hash_directory, weight_files
from worker.trainer.adapter.lora import PEFT_PREFIX
from worker.trainer.checkpoint.model_card import merged_card
from worker.trainer.runtime.process import die_with_parent

FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them


class CannotMerge(Exception):
    """The sentence says what was seen and what to do."""


class Stored(NamedTuple):
    """One tensor as a safetensors header has it."""

    dtype: str
    shape: list[int]
    size_bytes: int


class Shard(NamedTuple):
    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Stored]  # in the order of their bytes


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print("usage: python -m worker.trainer.merge BASE_DIR ADAPTER_DIR OUT_DIR", file=sys.stderr)
        return ExitCode.BAD_SPEC
    die_with_parent()
    try:
        about = merge(*map(Path, arguments))
    except CannotMerge as refusal:
        print(refusal, file=sys.stderr)
        return ExitCode.BAD_SPEC
    except OSError as error:
        print(f"The merged model cannot be written: {error.strerror or error}.", file=sys.stderr)
        return ExitCode.DISK_FULL if is_disk_full(error) else ExitCode.STORAGE
    print(json.dumps({"directory": arguments[2], **about["merged"]}))
    return ExitCode.DONE


def merge(base: Path, adapter: Path, destination: Path) -> dict[str, Any]:
    """Write `destination`, whole or not at all; what its manifest says. Raises CannotMerge, OSError."""
    manifest = _check(base, adapter, destination)
    aside = destination.with_name(f".{destination.name}.staged")
    shutil.rmtree(aside, ignore_errors=True)  # left by a crash
    aside.mkdir(parents=True)
    try:
        about = _write(base, adapter, aside, manifest)
        publish(aside, destination)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return about


def _check(base: Path, adapter: Path, destination: Path) -> dict[str, Any]:
    """The adapter's manifest, when it is whole and was trained on this very base."""
    if destination.exists():
        raise CannotMerge(f"{destination} is there already. Choose another directory, or remove it.")
    try:
        manifest = verify(adapter)
        found = hash_directory(base)[1]
    except ManifestMismatch as error:
        raise CannotMerge(f"The adapter is not whole: {error}. Download it again.") from error
    except OSError as error:
        raise CannotMerge(f"The base model's directory {base} cannot be read: {error.strerror}.") from error
    wanted = manifest.get("base_model")
    if wanted is None or "lora" not in manifest:
        raise CannotMerge(f"{adapter} has no manifest that says which base model it was trained on, and how.")
    if found != wanted["manifest_sha256"]:
        raise CannotMerge(
            f"The files in {base} are not the base model {wanted['name']} that the adapter was trained on: their hash "
            f"is {found[:12]} instead of {wanted['manifest_sha256'][:12]}. Name the directory that was registered."
        )
    return manifest


def _write(base: Path, adapter: Path, aside: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    shards = [_read_header(path) for path in weight_files(base)]
    with ExitStack() as opened:
        trained = opened.enter_context(safe_open(adapter / ADAPTER_WEIGHTS, framework="pt", device="cpu"))
        weights = _Merged(base, _layer_lora(manifest, shards), shards, trained)
        weights.check()
        for shard in weights.shards:
            _write_shard(aside / shard.path.name, shard, weights.tensor)
    _copy_the_rest(base, aside, weights)
    about = {
        "base_model": manifest["base_model"],
        "adapter": {key: value for key, value in manifest.items() if key not in ("files", "base_model")}
        | {"manifest_sha256": sha256_file(adapter / MANIFEST)},
        "merged": {"tensors": sum(len(shard.tensors) for shard in weights.shards), "changed": len(weights.changed)},
    }
    (aside / "README.md").write_text(merged_card(about), encoding="utf-8")
    write_manifest(aside, about)
    return about


def _layer_lora(manifest: dict[str, Any], shards: list[Shard]) -> LoraSpec:
    """Adapters of before patterns were matched at creation have them in their manifest. Raises CannotMerge."""
    matrices = {name: tensor.shape for shard in shards for name, tensor in shard.tensors.items()}
    layers = {name.removesuffix(".weight"): (shape[0], shape[1]) for name, shape in matrices.items() if len(shape) == 2}
    try:
        return by_layer(LoraSpec.model_validate(manifest["lora"]), layers)
    except PatternError as error:
        raise CannotMerge(f"The adapter's patterns cannot be matched with the base model's layers: {error}.") from error


class _Merged:
    """Every tensor of the merged model, made when it is asked for."""

    def __init__(self, base: Path, lora: LoraSpec, shards: list[Shard], trained: Any) -> None:
        self._lora = lora
        self._trained = trained
        self._names = set(trained.keys())
        self._where = {name: shard.path for shard in shards for name in shard.tensors}
        self.embedding, self.head = _tied_names(base) if self._saved_parameters() else ("", "")
        self.unties = bool(self._saved_parameters() & {self.embedding, self.head} - {""})
        self.shards = shards
        if self.unties and self.head not in self._where:
            last = shards[-1]
            of_embedding = next(shard.tensors[self.embedding] for shard in shards if self.embedding in shard.tensors)
            self.shards = [*shards[:-1], last._replace(tensors=last.tensors | {self.head: of_embedding})]
        self.changed: set[str] = set()

    def check(self) -> None:
        """Every tensor of the adapter has a place, and a base weight that numbers can be added to."""
        stored = {name: tensor for shard in self.shards for name, tensor in shard.tensors.items()}
        places = {f"{PEFT_PREFIX}{name}" for name in stored} | {
            f"{PEFT_PREFIX}{name.removesuffix('.weight')}.{part}"
            for name in stored
            for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
        }
        if lost := sorted(self._names - places):
            raise CannotMerge(f"The base model's files have no place for {lost[0]} of the adapter.")
        odd = [name for name, tensor in stored.items() if self._is_changed(name) and tensor.dtype not in FLOATS]
        if odd:
            raise CannotMerge(
                f"{odd[0]} of the base model is stored as {stored[odd[0]].dtype}; only floats can be merged."
            )

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the merged model, in the dtype it is stored in."""
        source = self.embedding if self.unties and name == self.head else name
        with safe_open(self._where[source], framework="pt", device="cpu") as file:
            tensor: torch.Tensor = file.get_tensor(source)
        if not self._is_changed(name):
            return tensor
        self.changed.add(name)
        if PEFT_PREFIX + name in self._names:
            return self._get(name).to(tensor.dtype)
        return self._with_lora(name.removesuffix(".weight"), tensor.float()).to(tensor.dtype)

    def _with_lora(self, layer: str, W_D_K: torch.Tensor) -> torch.Tensor:
        A_R_K, B_D_R = self._get(f"{layer}.lora_A.weight"), self._get(f"{layer}.lora_B.weight")
        W_D_K.addmm_(B_D_R, A_R_K, alpha=scale_of(self._lora, layer))
        if self._lora.use_dora:
            W_D_K.mul_((self._get(f"{layer}.lora_magnitude_vector") / W_D_K.norm(dim=1))[:, None])
        return W_D_K

    def _get(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._trained.get_tensor(PEFT_PREFIX + name)
        return tensor

    def _is_changed(self, name: str) -> bool:
        adapted = f"{PEFT_PREFIX}{name.removesuffix('.weight')}.lora_A.weight"
        return PEFT_PREFIX + name in self._names or (name.endswith(".weight") and adapted in self._names)

    def _saved_parameters(self) -> set[str]:
        return {name.removeprefix(PEFT_PREFIX) for name in self._names if ".lora_" not in name}


def _tied_names(base: Path) -> tuple[str, str]:
    """The embedding's and the head's weight where the model keeps both as one matrix, else two empty names."""
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    if not config.tie_word_embeddings:
        return "", ""
    with init_empty_weights():
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = (names[id(module)] for module in (model.get_input_embeddings(), model.get_output_embeddings()))
    return f"{embedding}.weight", f"{head}.weight"


def _read_header(path: Path) -> Shard:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header.pop("__metadata__", {})
    in_order = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    tensors = {
        name: Stored(entry["dtype"], entry["shape"], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in in_order
    }
    return Shard(path, metadata, tensors)


def _write_shard(path: Path, shard: Shard, tensor: Callable[[str], torch.Tensor]) -> None:
    """A safetensors file, tensor by tensor: the library's own writer wants all of them in memory."""
    header: dict[str, Any] = {"__metadata__": shard.metadata}
    at = 0
    for name, stored in shard.tensors.items():
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [at, at + stored.size_bytes]}
        at += stored.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shard.tensors:
            file.write(tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _copy_the_rest(base: Path, aside: Path, weights: _Merged) -> None:
    """Configuration, tokenizer, chat template, licence: as they are, but for what untying changes."""
    for path in sorted(base.iterdir()):
        is_weights = path.suffix == ".safetensors" or path.name == INDEX
        if (
            path.is_file()
            and not path.name.startswith(".")
            and not is_weights
            and path.name not in ("README.md", MANIFEST)
        ):
            shutil.copyfile(path, aside / path.name)
    if (base / INDEX).exists():
        index = json.loads((base / INDEX).read_text(encoding="utf-8"))
        index["weight_map"] = {name: shard.path.name for shard in weights.shards for name in shard.tensors}
        sizes = [stored.size_bytes for shard in weights.shards for stored in shard.tensors.values()]
        index["metadata"] = {**index.get("metadata", {}), "total_size": sum(sizes)}
        _write_json(aside / INDEX, index)
    if weights.unties:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        _write_json(aside / "config.json", config | {"tie_word_embeddings": False})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
