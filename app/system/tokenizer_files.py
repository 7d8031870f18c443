"""The tokenizer files of a base model: read without importing transformers or torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from app.domain.datasets.render import Renderer

CACHED_TOKENIZERS = 4  # of the base models that a process read last; one of 3.5 MB takes 29 MB of memory
GENERATION_CONFIGS = ("generation_config.json", "config.json")  # as transformers reads them: the first that is there


def load_renderer(directory: Path, now: datetime | None = None) -> Renderer:
    """Read a base model's tokenizer and chat template; `now` is what the template prints as the current time."""
    config = _read_json(directory / "tokenizer_config.json")
    specials = {key: _token_text(value) for key, value in config.items() if key.endswith("_token") and value}
    file = directory / "tokenizer.json"
    status = file.stat()
    tokenizer, opening = _load_tokenizer(file, status.st_mtime_ns, status.st_size)
    template, stops = _read_template(directory, config), _read_stops(directory, tokenizer)
    return Renderer(tokenizer, template, specials, stops, opening, now)


@lru_cache(maxsize=CACHED_TOKENIZERS)
def _load_tokenizer(file: Path, _mtime_ns: int, _size_bytes: int) -> tuple[Tokenizer, list[int]]:
    """The tokenizer and its `opening`. Cached, as no other thread runs while a file is read: 0.13 s for 3.5 MB."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    opening = _opening(tokenizer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # adds nothing; others shift the offsets
    return tokenizer, opening


def _read_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The template of a model's directory, whose tokenizer_config.json is `config`; None where there is none."""
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _opening(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer itself puts before a text, such as the token that begins a sequence."""
    plain = list(tokenizer.encode("a", add_special_tokens=False).ids)
    whole = list(tokenizer.encode("a", add_special_tokens=True).ids)
    return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(plain)] == plain), [])


def _read_stops(directory: Path, tokenizer: Tokenizer) -> list[str]:
    """The end-of-turn tokens that generation knows beside the tokenizer's eos token: Llama 3, Gemma and others."""
    name = next((name for name in GENERATION_CONFIGS if (directory / name).exists()), None)
    ids = _read_json(directory / name).get("eos_token_id") if name else None
    added = tokenizer.get_added_tokens_decoder()
    wanted = ids if isinstance(ids, list) else [ids]
    return [added[number].content for number in wanted if number in added]


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _token_text(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else str(value)
