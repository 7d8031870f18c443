"""Convert a GGUF file to a safetensors directory.

python -m worker.trainer.gguf.to_safetensors GGUF_FILE DESTINATION [CHAT_TEMPLATE_FILE]

Weights become bfloat16, which is more precise than the 4-bit source; QLoRA loads them as NF4 anyway. The directory is
written under a temporary name, synced and renamed, so it is always complete.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

from app.system.files import sync, write_json


def main(arguments: list[str]) -> int:
    if len(arguments) not in (2, 3):
        usage = "python -m worker.trainer.gguf.to_safetensors GGUF_FILE DESTINATION [CHAT_TEMPLATE_FILE]"
        print(f"usage: {usage}", file=sys.stderr)
        return 2
    convert(*map(Path, arguments))
    return 0


def convert(source: Path, destination: Path, chat_template: Path | None = None) -> None:
    """Convert the file `source` to the directory `destination`, with another chat template if one is given.

    Raises SystemExit without a chat template.
    """
    temporary = destination.with_name(destination.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _cache_gguf_parsing()
    _save(source, temporary, chat_template)
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    temporary.rename(destination)
    sync(destination.parent)


def _save(source: Path, directory: Path, chat_template: Path | None) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if chat_template is not None:
        tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise SystemExit(
            f"{source.name} has no chat template, which is needed to render conversations. Name a file with a Jinja "
            "template as the third argument, or use another GGUF file."
        )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _name_tokenizer_class(directory / "tokenizer_config.json")


def _cache_gguf_parsing() -> None:
    """Cache what transformers repeats: it reads the file three times and builds the name map per module (17 -> 9 s)."""
    for name in ("GGUFReader", "get_tensor_name_map"):
        setattr(gguf, name, functools.cache(getattr(gguf, name)))


def _name_tokenizer_class(path: Path) -> None:
    """Set the old name of TokenizersBackend: transformers 4 and its dependents have only that, transformers 5 both."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, config)


if __name__ == "__main__":
    logging.disable_progress_bar()
    raise SystemExit(main(sys.argv[1:]))
