"""The files of a base model: checks, the catalog entry, hashes.

Only config.json and the headers of the safetensors files are read: no torch, no weights in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from app.domain.base_models.architectures import (
    DEQUANTIZED_METHODS,
    EXPERTS,
    OTHER_MODALITIES,
    is_linear,
    names_of_experts,
    quantization_method,
    quantization_problem,
    text_config,
    unsupported_reason,
)
from app.domain.base_models.catalog import (
    CatalogEntry,
    RefusedModel,
    StatSignature,
    TrainerReport,
    default_learning_rate,
    max_document_tokens,
)
from app.domain.jobs.spec import BaseSpec
from app.system.files import copy_and_hash, irregular_files, open_regular, read_regular

MAX_HEADER_BYTES = 100 << 20
# Loading pickled weights runs code; `auto_map` and `_attn_implementation*` make transformers run code from other places
# (CVE-2026-4372); *.py is remote code itself.
FORBIDDEN_SUFFIXES = frozenset({".py", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack"})
FORBIDDEN_CONFIG_KEYS = ("auto_map", "_attn_implementation", "_attn_implementation_internal")
REQUIRED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
DEQUANTIZED_FROM = ".dequantized_from"  # in a 16-bit copy: the SHA-256 of the source's manifest; hashes leave it out
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
DEFAULT_CONTEXT_LENGTH = 2048
ORIGINAL_LENGTH = "original_max_position_embeddings"
SIZE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    ORIGINAL_LENGTH,
    "sliding_window",
)
SIZES_BY_LAYER = ("intermediate_size",)  # may be arrays, one size for each layer
COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "top_k_experts")
ARRAY_KEYS = ("architectures", "layer_types", "layers_block_type")
OBJECT_KEYS = ("rope_parameters", "rope_scaling")
MAX_LISTED_LAYERS = 4096  # a database row lists all of them; a dense 70B model has 560


def read_catalog_entry(
    directory: Path, learning_rate: float | None = None, license_name: str | None = None
) -> CatalogEntry:
    """The catalog entry of a model directory. Raises RefusedModel that names all its problems."""
    check_files(directory)
    config = _read_json(directory / "config.json")
    text = text_config(config)
    tensors = {
        name: shape for name, shape in read_tensor_shapes(directory).items() if not OTHER_MODALITIES.search(name)
    }
    linear, taken = _linear_layers(tensors), names_of_experts(tensors)
    layers = {name: shape for name, shape in linear.items() if name.rpartition(".")[2] not in taken}
    hidden_size = int(text["hidden_size"])
    architecture = str((config.get("architectures") or ["unknown"])[0])
    return CatalogEntry(
        architecture=architecture,
        context_length=max_document_tokens(text) or DEFAULT_CONTEXT_LENGTH,
        hidden_size=hidden_size,
        vocab_size=int(text.get("vocab_size") or _embedding_rows(tensors)),
        parameters=sum(math.prod(shape) for shape in tensors.values()),
        size_bytes=sum(path.stat().st_size for path in weight_files(directory)),
        target_modules=_smallest_by_name(layers),
        layers=layers if len(layers) <= MAX_LISTED_LAYERS else {},
        whole_modules=_whole_modules(tensors, linear),
        learning_rate=learning_rate or default_learning_rate(hidden_size, architecture),
        has_chat_template=_has_chat_template(directory),
        license=license_name,
        **_sizes(text),
        linear_parameters=sum(math.prod(shape) for shape in linear.values()),
        expert_parameters=_expert_parameters(tensors),
        active_experts=_active_experts(text),
    )


def check_files(directory: Path) -> None:
    """Check names and config.json. Raises RefusedModel that names all problems."""
    if problems := _problems(directory):
        raise RefusedModel(f"{directory} cannot be a base model: " + "; ".join(problems))


def is_dequantized_first(directory: Path) -> bool:
    """Whether the directory has an MXFP4 or FP8 checkpoint, which registration converts to 16 bits."""
    config = directory / "config.json"
    return config.is_file() and quantization_method(_read_json(config)) in DEQUANTIZED_METHODS


def is_dequantized_from(copy: Path, source: Path) -> bool:
    """Whether `copy` is the 16-bit copy of the files that `source` has now."""
    mark = copy / DEQUANTIZED_FROM
    return mark.is_file() and mark.read_text(encoding="utf-8").strip() == hash_directory(source)[1]


def dequantized_bytes(directory: Path) -> int:
    """The bytes of the weights in 16 bits; MXFP4 has two weights in a byte. Scales are counted as weights."""
    shapes = read_tensor_shapes(directory)
    return sum(math.prod(shape) * (4 if name.endswith("_blocks") else 2) for name, shape in shapes.items())


def with_report(entry: CatalogEntry, report: TrainerReport) -> CatalogEntry:
    """The catalog entry with the values that the trainer determines: names, shapes and the defaults of its classes."""
    layers, text = report.layers, text_config(report.text_config)
    known = {
        "context_length": max_document_tokens(text) or entry.context_length,
        "vocab_size": int(text.get("vocab_size") or entry.vocab_size),
        "parameters": report.parameters,
        "target_modules": _smallest_by_name(layers),
        "layers": layers if len(layers) <= MAX_LISTED_LAYERS else {},
        "experts": report.experts if len(report.experts) <= MAX_LISTED_LAYERS else {},
        "whole_modules": report.whole_modules,
        "linear_parameters": report.linear_parameters,
        "expert_parameters": report.expert_parameters,
        "active_experts": _active_experts(text),
        "activation_bytes": report.activation_bytes,
    }
    return entry.model_copy(update={**known, **_sizes(text | {"hidden_size": entry.hidden_size})})


def entry_of(base: BaseSpec) -> CatalogEntry:
    """The catalog entry of a job's base model, or what its directory tells."""
    return base.entry or read_catalog_entry(base.directory)


def hash_directory(
    directory: Path, on_chunk: Callable[[], object] = lambda: None
) -> tuple[dict[str, dict[str, Any]], str]:
    """({name: {"bytes", "sha256"}} of the files, SHA-256 of that mapping as canonical JSON)."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path, on_chunk)} for path in _files(directory)}
    canonical = json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
    return files, hashlib.sha256(canonical).hexdigest()


def stat_signature(directory: Path) -> StatSignature:
    """(name, bytes, mtime, ctime, inode) of each file, which changes when a file is changed, replaced or touched.

    Take it *before* hashing the directory: while it is unchanged, so is the hash, because a ctime cannot be set. It
    saves reading the files again, which takes half a minute for 16 GB.
    """
    stats = [(path.name, path.stat()) for path in _files(directory)]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats)


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers loads: those in the index, or the single file if there is no index."""
    if not (directory / INDEX).exists():
        return [directory / WEIGHTS]
    weight_map = _read_json(directory / INDEX).get("weight_map") or {}
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise RefusedModel(f"{INDEX} has a weight_map that does not give a file name for each tensor")
    return [directory / Path(name).name for name in sorted(set(weight_map.values()))]


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
    if irregular := irregular_files(directory):
        return irregular
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
        unsupported = unsupported_reason(config), quantization_problem(config)
        problems += [problem for problem in unsupported if problem]
        if not problems:
            problems += [*_type_problems({**text_config(config), "architectures": config.get("architectures")})]
            problems += _number_problems(text_config(config))
    return problems


def _type_problems(values: Mapping[str, Any]) -> Iterator[str]:
    for keys, kind, name in ((ARRAY_KEYS, list, "array"), (OBJECT_KEYS, dict, "object")):
        for key in keys:
            if values.get(key) is not None and not isinstance(values[key], kind):
                yield f"config.json has {key} {json.dumps(values[key])}; only an {name} is allowed"


def _number_problems(text: Mapping[str, Any]) -> Iterator[str]:
    if "hidden_size" not in text:
        yield "config.json has no hidden_size"
    for key in SIZE_KEYS:
        sizes = text.get(key)
        each = sizes if isinstance(sizes, list) and key in SIZES_BY_LAYER else [sizes]
        if key == "sliding_window" and sizes == 0 and text.get("use_sliding_window") is False:
            continue  # transformers saves a Qwen2-MoE without a window so
        if not all(size is None or _is_integer_from(1, size) for size in each):
            yield _not_a_size(key, sizes)
    for name, rope in _rope_parameters(text):
        if rope.get(ORIGINAL_LENGTH) is not None and not _is_integer_from(1, rope[ORIGINAL_LENGTH]):
            yield _not_a_size(f"{name}.{ORIGINAL_LENGTH}", rope[ORIGINAL_LENGTH])
    for key in COUNT_KEYS:
        if text.get(key) is not None and not _is_integer_from(0, text[key]):
            yield f"config.json has {key} {json.dumps(text[key])}; only integers from 0 are allowed"
    experts, used = _expert_counts(text)
    if experts and used > experts:
        yield f"config.json gives each token {used} experts, but has {experts}"
    if text.get("max_position_embeddings") == 1:
        yield "config.json gives it a context of 1 token, which leaves none to predict"


def _rope_parameters(text: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parameters of the rotary embeddings with their names: one for all layers, or one for each kind of layer."""
    for key in OBJECT_KEYS:
        rope = text.get(key)
        if isinstance(rope, dict):
            yield key, rope
            yield from ((f"{key}.{kind}", each) for kind, each in rope.items() if isinstance(each, dict))


def _not_a_size(key: str, value: object) -> str:
    return f"config.json has {key} {json.dumps(value)}; only positive integers are sizes"


def _is_integer_from(least: int, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _linear_layers(tensors: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """Every linear layer that an adapter may have, by full name: the meaning of "all-linear"."""
    return {
        name.rpartition(".")[0]: (shape[0], shape[1])
        for name, shape in sorted(tensors.items())
        if is_linear(name, shape)
    }


def _expert_parameters(tensors: dict[str, tuple[int, ...]]) -> int:
    """The numbers in the weights of all experts, which files store stacked or one by one."""
    weights = (shape for name, shape in tensors.items() if EXPERTS.search(name) and not name.endswith("bias"))
    return sum(math.prod(shape) for shape in weights)


def _embedding_rows(tensors: dict[str, tuple[int, ...]]) -> int:
    """The rows of the token embedding, for a config.json that omits the size of the vocabulary as a default."""
    embeddings = [shape[0] for name, shape in tensors.items() if name.endswith("embed_tokens.weight")]
    return max(embeddings, default=0)


def _active_experts(text: Mapping[str, Any]) -> float:
    """The share of a layer's experts that a token uses; 1 for a model without experts."""
    total, used = _expert_counts(text)
    return min(1.0, used / total) if total and used else 1.0


def _expert_counts(text: Mapping[str, Any]) -> tuple[int, int]:
    """The experts of a layer, and those that a token uses; zero if config.json does not state them as integers."""
    counts = [text.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")]
    used = text.get("num_experts_per_tok") or text.get("top_k_experts")
    total = next((count for count in counts if count), 0)
    return (total if isinstance(total, int) else 0), (used if isinstance(used, int) else 0)


def _smallest_by_name(layers: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    smallest: dict[str, tuple[int, int]] = {}
    for layer, shape in layers.items():
        name = layer.rpartition(".")[2]
        smallest[name] = min(smallest.get(name, shape), shape, key=min)
    return smallest


def _whole_modules(tensors: dict[str, tuple[int, ...]], layers: dict[str, tuple[int, int]]) -> tuple[str, ...]:
    """The last names of all other modules, and the head, which no file contains if it is tied to the embedding."""
    owners = {name.rpartition(".")[0] for name in tensors if not EXPERTS.search(name)}
    return tuple(sorted({owner.rpartition(".")[2] for owner in owners - layers.keys() if owner} | {"lm_head"}))


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The widths of a decoder layer; zero if config.json does not state them."""
    hidden, heads = int(config["hidden_size"]), int(config.get("num_attention_heads") or 1)
    head = int(config.get("head_dim") or hidden // heads)
    return {
        "decoder_layers": int(config.get("num_hidden_layers") or 0),
        "attention_heads": heads,
        "query_size": heads * head,
        "key_size": int(config.get("num_key_value_heads") or heads) * head,
        "intermediate_size": _largest(config.get("intermediate_size")) or 4 * hidden,
    }


def _largest(size: int | list[int] | None) -> int:
    """The largest of a size that config.json gives for each layer; zero without one."""
    return max(size) if isinstance(size, list) else size or 0


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))


def _sha256(path: Path, on_chunk: Callable[[], object]) -> str:
    with open_regular(path) as file:
        return copy_and_hash(file, on_chunk=on_chunk).sha256


def _read_header(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
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
        return dict(json.loads(read_regular(path)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RefusedModel(f"{path.name} is not a readable JSON object: {error}") from error
