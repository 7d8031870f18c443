"""The tokenizer, chat template and stop tokens of a base model, read without importing transformers or torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer, processors

from app.domain.base_models.architectures import text_config
from app.domain.datasets.encoding import encode
from app.domain.datasets.render import Renderer
from app.system.files import MAX_TOKENIZER_BYTES, read_regular

CACHED_TOKENIZERS = 4  # of the last base models that a process read; a file of 3.5 MB takes 29 MB of memory
MAX_TEMPLATE_BYTES = 1 << 20  # those of Llama, Qwen, Gemma and others have up to 20 kB
GENERATION_CONFIGS = ("generation_config.json", "config.json")  # transformers reads the first that exists


AnyRenderer = TypeVar("AnyRenderer", bound=Renderer)


def load_renderer(
    directory: Path,
    now: datetime | None = None,
    kind: type[AnyRenderer] = Renderer,  # type: ignore[assignment]
) -> AnyRenderer:
    """Read a base model's tokenizer and chat template; `now` is what the template prints as the current time.

    A plain Renderer runs the template without limits: see app.system.limited_rendering. Raises OSError, and ValueError
    that names a damaged file.
    """
    config = _read_json(directory / "tokenizer_config.json")
    special_tokens = {key: _token_text(value) for key, value in config.items() if key.endswith("_token") and value}
    file = directory / "tokenizer.json"
    status = file.stat()
    tokenizer, bos_tokens, sha256 = _load_tokenizer(file, status.st_mtime_ns, status.st_size)
    template, stops = _read_template(directory, config), _read_stops(directory, tokenizer)
    rows = _read_embedding_rows(directory)
    return kind(tokenizer, template, special_tokens, stops, bos_tokens, now, rows, sha256)


def read_response_template(directory: Path) -> dict[str, Any] | None:
    """How a generated text is divided into content, reasoning and tool calls (transformers' `parse_response`)."""
    template = _read_json(directory / "tokenizer_config.json").get("response_template")
    return template if isinstance(template, dict) else None


@lru_cache(maxsize=CACHED_TOKENIZERS)
def _load_tokenizer(file: Path, _mtime_ns: int, _size_bytes: int) -> tuple[Tokenizer, list[int], str]:
    """The tokenizer, the tokens that it adds before a text, and the SHA-256 of its file.

    Cached, because reading a file of 3.5 MB takes 0.13 s, during which no other thread runs.
    """
    content = read_regular(file, MAX_TOKENIZER_BYTES)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers has no class of its own for it
        raise ValueError(f"{file.name} is not a tokenizer ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bos_tokens = _bos_tokens(tokenizer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # adds no tokens; others shift the offsets
    return tokenizer, bos_tokens, hashlib.sha256(content).hexdigest()


def _read_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template of a model whose tokenizer_config.json is `config`; None if it has none."""
    file = directory / "chat_template.jinja"
    if file.exists():
        return read_regular(file, MAX_TEMPLATE_BYTES).decode()
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _bos_tokens(tokenizer: Tokenizer) -> list[int]:
    """The tokens that the tokenizer adds before a text, such as the beginning-of-sequence token."""
    plain = list(encode(tokenizer, "a").ids)
    complete = list(encode(tokenizer, "a", special=True).ids)
    return next((complete[:at] for at in range(len(complete)) if complete[at : at + len(plain)] == plain), [])


def _read_stops(directory: Path, tokenizer: Tokenizer) -> list[str]:
    """The end-of-turn tokens in the generation config, which Llama 3, Gemma and others have beside the eos token."""
    name = next((name for name in GENERATION_CONFIGS if (directory / name).exists()), None)
    ids = _read_json(directory / name).get("eos_token_id") if name else None
    added = tokenizer.get_added_tokens_decoder()
    stop_ids = ids if isinstance(ids, list) else [ids]
    return [added[token_id].content for token_id in stop_ids if token_id in added]


def _read_embedding_rows(directory: Path) -> int | None:
    """The rows of the token embedding; None if config.json does not state them."""
    file = directory / "config.json"
    rows = text_config(_read_json(file)).get("vocab_size") if file.exists() else None
    return rows if isinstance(rows, int) else None


def _read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError that names the file."""
    try:
        return dict(json.loads(read_regular(path)))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a JSON object ({error})") from error


def _token_text(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else str(value)
