"""The directory of a base model: checked, described as a catalog entry, hashed.

Everything is read from config.json and the safetensors headers: no torch, no weights in memory.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.domain.base_models.catalog import (
    IGNORED_LAYERS,
    CatalogEntry,
    RefusedModel,
    Signature,
    default_learning_rate,
    longest_document,
)
from app.system.artifact_directory import sha256_file

MAX_HEADER_BYTES = 100 << 20
# Weights as pickles run code when they are loaded; `auto_map` and `_attn_implementation*` make transformers run code
# from elsewhere (CVE-2026-4372); *.py is remote code itself.
FORBIDDEN_SUFFIXES = frozenset({".py", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack"})
FORBIDDEN_CONFIG_KEYS = ("auto_map", "_attn_implementation", "_attn_implementation_internal")
REQUIRED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
DEFAULT_CONTEXT_LENGTH = 2048
MAX_LISTED_LAYERS = 4096  # a row of the database names them all; a dense 70B model has 560


def read_catalog_entry(
    directory: Path, learning_rate: float | None = None, license_name: str | None = None
) -> CatalogEntry:
    """Read a model directory. Raises RefusedModel naming everything that is wrong with it."""
    if problems := list(_problems(directory)):
        raise RefusedModel(f"{directory} cannot be a base model: " + "; ".join(problems))
    config = _read_json(directory / "config.json")
    tensors = read_tensor_shapes(directory)
    layers = _linear(tensors)
    hidden_size = int(config["hidden_size"])
    architecture = str((config.get("architectures") or ["unknown"])[0])
    return CatalogEntry(
        architecture=architecture,
        context_length=longest_document(config) or DEFAULT_CONTEXT_LENGTH,
        hidden_size=hidden_size,
        vocab_size=int(config["vocab_size"]),
        parameters=sum(_product(shape) for shape in tensors.values()),
        size_bytes=sum(path.stat().st_size for path in weight_files(directory)),
        target_modules=_smallest_by_name(layers),
        layers=layers if len(layers) <= MAX_LISTED_LAYERS else {},
        whole_modules=_whole_modules(tensors, layers),
        learning_rate=learning_rate or default_learning_rate(hidden_size, architecture),
        has_chat_template=_has_chat_template(directory),
        license=license_name,
        **_sizes(config),
        linear_parameters=sum(_product(shape) for shape in layers.values()),
    )


def hash_directory(directory: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """({name: {"bytes", "sha256"}}, SHA-256 over that as canonical JSON) of a model directory's files."""
    paths = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in paths}
    canonical = json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
    return files, hashlib.sha256(canonical).hexdigest()


def stat_signature(directory: Path) -> Signature:
    """(name, bytes, mtime, ctime, inode) of each file: what differs after a file was changed, replaced or touched.

    Whoever has hashed a directory takes this *before* the hash; while it is the same the hash is, too. Nobody can set a
    ctime. Reading 16 GB takes half a minute.
    """
    paths = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    stats = [(path.name, path.stat()) for path in paths]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats)


def weight_files(directory: Path) -> list[Path]:
    """Those that transformers loads: what the index names, or the one file there is without an index."""
    if not (directory / INDEX).exists():
        return [directory / WEIGHTS]
    names = (_read_json(directory / INDEX).get("weight_map") or {}).values()
    return [directory / Path(name).name for name in sorted(set(names))]


def read_tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """{tensor name: shape} from the headers of the weights. Raises RefusedModel for a file that is not whole."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(directory):
        header = _read_header(path)
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def linear_layers(directory: Path) -> dict[str, tuple[int, int]]:
    """{full name: [out, in]} of every linear layer, also where an entry would have too many to list them."""
    return _linear(read_tensor_shapes(directory))


def _problems(directory: Path) -> list[str]:
    if not directory.is_dir():
        return ["it is not a directory that this user can read"]
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
        problems.append(f"{INDEX} names no file of weights")
    if not problems:
        config = _read_json(directory / "config.json")
        problems += [
            f"config.json has the key {key}, which loads code" for key in FORBIDDEN_CONFIG_KEYS if key in config
        ]
        problems += [f"config.json has no {key}" for key in ("hidden_size", "vocab_size") if key not in config]
    return problems


def _linear(tensors: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """Every two-dimensional `<layer>.weight` but embeddings and the head, by its full name: what "all-linear" means."""
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
    """The head is always there, also where no file holds it because it is the embedding."""
    owners = {name.rpartition(".")[0] for name in tensors}
    return tuple(sorted({owner.rpartition(".")[2] for owner in owners - layers.keys() if owner} | {"lm_head"}))


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    """The widths of a decoder layer, zero where config.json does not say."""
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
    """A download that was broken off ends early; every job on such a base would."""
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    want, found = start + max(ends, default=0), path.stat().st_size
    if found != want:
        text = f"{path.name} has {found:,} bytes, but its header speaks of {want:,}"
        raise RefusedModel(f"{text}; it was cut short or altered")


def _has_chat_template(directory: Path) -> bool:
    return (directory / "chat_template.jinja").exists() or bool(
        _read_json(directory / "tokenizer_config.json").get("chat_template")
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RefusedModel(f"{path.name} is not readable JSON: {error}") from error


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for dimension in shape:
        result *= dimension
    return result
