"""The files of a base model: checks, the catalog entry, hashes.

Only config.json and the headers of the safetensors files are read: no torch, no weights in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.domain.base_models.catalog import (
    IGNORED_LAYERS,
    CatalogEntry,
    RefusedModel,
    StatSignature,
    default_learning_rate,
    max_document_tokens,
)
from app.system.artifact_directory import sha256_file

MAX_HEADER_BYTES = 100 << 20
# Loading pickled weights runs code; `auto_map` and `_attn_implementation*` make transformers run code from other places
# (CVE-2026-4372); *.py is remote code itself.
FORBIDDEN_SUFFIXES = frozenset({".py", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack"})
FORBIDDEN_CONFIG_KEYS = ("auto_map", "_attn_implementation", "_attn_implementation_internal")
REQUIRED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
DEFAULT_CONTEXT_LENGTH = 2048
MAX_LISTED_LAYERS = 4096  # a database row lists all of them; a dense 70B model has 560


def read_catalog_entry(
    directory: Path, learning_rate: float | None = None, license_name: str | None = None
) -> CatalogEntry:
    """The catalog entry of a model directory. Raises RefusedModel that names all its problems."""
    if problems := list(_problems(directory)):
        raise RefusedModel(f"{directory} cannot be a base model: " + "; ".join(problems))
    config = _read_json(directory / "config.json")
    tensors = read_tensor_shapes(directory)
    layers = _linear_layers(tensors)
    hidden_size = int(config["hidden_size"])
    architecture = str((config.get("architectures") or ["unknown"])[0])
    return CatalogEntry(
        architecture=architecture,
        context_length=max_document_tokens(config) or DEFAULT_CONTEXT_LENGTH,
        hidden_size=hidden_size,
        vocab_size=int(config["vocab_size"]),
        parameters=sum(math.prod(shape) for shape in tensors.values()),
        size_bytes=sum(path.stat().st_size for path in weight_files(directory)),
        target_modules=_smallest_by_name(layers),
        layers=layers if len(layers) <= MAX_LISTED_LAYERS else {},
        whole_modules=_whole_modules(tensors, layers),
        learning_rate=learning_rate or default_learning_rate(hidden_size, architecture),
        has_chat_template=_has_chat_template(directory),
        license=license_name,
        **_sizes(config),
        linear_parameters=sum(math.prod(shape) for shape in layers.values()),
    )


def hash_directory(directory: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """({name: {"bytes", "sha256"}} of the files, SHA-256 of that mapping as canonical JSON)."""
    paths = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in paths}
    canonical = json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
    return files, hashlib.sha256(canonical).hexdigest()


def stat_signature(directory: Path) -> StatSignature:
    """(name, bytes, mtime, ctime, inode) of each file, which changes when a file is changed, replaced or touched.

    Take it *before* hashing the directory: while it is unchanged, so is the hash, because a ctime cannot be set. It
    saves reading the files again, which takes half a minute for 16 GB.
    """
    paths = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    stats = [(path.name, path.stat()) for path in paths]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats)


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers loads: those in the index, or the single file if there is no index."""
    if not (directory / INDEX).exists():
        return [directory / WEIGHTS]
    names = (_read_json(directory / INDEX).get("weight_map") or {}).values()
    return [directory / Path(name).name for name in sorted(set(names))]


def read_tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape} from the headers of the weight files. Raises RefusedModel for an incomplete file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(directory):
        header = _read_header(path)
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def linear_layers(directory: Path) -> dict[str, tuple[int, int]]:
    """{full name: [out, in]} of every linear layer, also of models whose catalog entry does not list them."""
    return _linear_layers(read_tensor_shapes(directory))


def _problems(directory: Path) -> list[str]:
    if not directory.is_dir():
        return ["it is not a readable directory"]
    names = {path.name for path in directory.iterdir()}
    problems = [f"{name} is missing" for name in REQUIRED_FILES if name not in names]
    problems += [
        f"{name} is refused (weights must be safetensors; code and pickles are never loaded)"
        for name in sorted(names)
        if Path(name).suffix in FORBIDDEN_SUFFIXES
    ]
    weights = weight_files(directory)
    problems += [f"{path.name} is missing" for path in weights if path.name not in names]
    if not weights:
        problems.append(f"{INDEX} lists no weight file")
    if not problems:
        config = _read_json(directory / "config.json")
        problems += [
            f"config.json has the key {key}, which loads code" for key in FORBIDDEN_CONFIG_KEYS if key in config
        ]
        problems += [f"config.json has no {key}" for key in ("hidden_size", "vocab_size") if key not in config]
    return problems


def _linear_layers(tensors: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """Every two-dimensional `<layer>.weight` except embeddings and head, by full name: the meaning of "all-linear"."""
    layers: dict[str, tuple[int, int]] = {}
    for name, shape in sorted(tensors.items()):
        layer, _, parameter = name.rpartition(".")
        if parameter == "weight" and len(shape) == 2 and layer.rpartition(".")[2] not in IGNORED_LAYERS:
            layers[layer] = (shape[0], shape[1])
    return layers


def _smallest_by_name(layers: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    smallest: dict[str, tuple[int, int]] = {}
    for layer, shape in layers.items():
        name = layer.rpartition(".")[2]
        smallest[name] = min(smallest.get(name, shape), shape, key=min)
    return smallest


def _whole_modules(tensors: dict[str, tuple[int, ...]], layers: dict[str, tuple[int, int]]) -> tuple[str, ...]:
    """The last names of all other modules, and the head, which no file contains if it is tied to the embedding."""
    owners = {name.rpartition(".")[0] for name in tensors}
    return tuple(sorted({owner.rpartition(".")[2] for owner in owners - layers.keys() if owner} | {"lm_head"}))


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    """The widths of a decoder layer; zero if config.json does not state them."""
    hidden, heads = int(config["hidden_size"]), int(config.get("num_attention_heads") or 1)
    head = int(config.get("head_dim") or hidden // heads)
    return {
        "decoder_layers": int(config.get("num_hidden_layers") or 0),
        "attention_heads": heads,
        "query_size": heads * head,
        "key_size": int(config.get("num_key_value_heads") or heads) * head,
        "intermediate_size": int(config.get("intermediate_size") or 4 * hidden),
    }


def _read_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= size <= MAX_HEADER_BYTES:
            raise RefusedModel(f"{path.name} is not a safetensors file: its header size is {size} bytes")
        try:
            header = dict(json.loads(file.read(size)))
        except ValueError as error:
            raise RefusedModel(f"{path.name} is not a safetensors file: its header is not JSON") from error
    _check_length(path, 8 + size, header)
    return header


def _check_length(path: Path, start: int, header: Mapping[str, Any]) -> None:
    """Refuse a truncated file, for example of an interrupted download, before every job on the model fails."""
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected_bytes, size_bytes = start + max(ends, default=0), path.stat().st_size
    if size_bytes != expected_bytes:
        text = f"{path.name} has {size_bytes:,} bytes, but {expected_bytes:,} according to its header"
        raise RefusedModel(f"{text}; it was truncated or altered")


def _has_chat_template(directory: Path) -> bool:
    return (directory / "chat_template.jinja").exists() or bool(
        _read_json(directory / "tokenizer_config.json").get("chat_template")
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RefusedModel(f"{path.name} is not readable JSON: {error}") from error
