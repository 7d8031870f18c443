"""Convert a GGUF file to a safetensors directory.

python -m worker.trainer.gguf.to_safetensors GGUF_FILE DESTINATION [CHAT_TEMPLATE_FILE]

Weights become bfloat16, which is more precise than the 4-bit source; QLoRA loads them as NF4 anyway.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

from app.system.artifact_directory import published
from app.system.files import write_json


def main(arguments: list[str]) -> int:
    if len(arguments) not in (2, 3):
        usage = "python -m worker.trainer.gguf.to_safetensors GGUF_FILE DESTINATION [CHAT_TEMPLATE_FILE]"
        print(f"usage: {usage}", file=sys.stderr)
        return 2
    convert(*map(Path, arguments))
    return 0


def convert(source: Path, destination: Path, chat_template: Path | None = None) -> None:
    """Convert the file `source` to the directory `destination`, completely or not at all.

    `chat_template` is a file with another template than that of `source`.
    Raises SystemExit without a chat template.
    """
    for name in ("GGUFReader", "get_tensor_name_map"):
        # transformers reads the file three times and builds the map of names for each module: 9 s instead of 17.
        setattr(gguf, name, functools.cache(getattr(gguf, name)))
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
    with published(destination) as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        path = directory / "tokenizer_config.json"
        # The old name of TokenizersBackend: transformers 4 and its dependents have only that, transformers 5 both.
        named = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        write_json(path, named)


if __name__ == "__main__":
    logging.disable_progress_bar()
    raise SystemExit(main(sys.argv[1:]))
