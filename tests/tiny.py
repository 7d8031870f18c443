"""A tiny base model and dataset, made in a tenth of a second, with the same bytes every time, without torch or numpy.

A random two-layer Llama of about 90,000 parameters with a byte-level tokenizer (one token a byte) and a
ChatML template: all parts of a registered base model, small enough to be trained in a unit test.
"""

from __future__ import annotations

import array
import json
import random
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 259,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}


def make_tiny_base(directory: Path, *, seed: int = 0, **config: Any) -> Path:
    """Write a base model into `directory` (created if missing); `config` overrides entries of CONFIG."""
    directory.mkdir(parents=True, exist_ok=True)
    merged = CONFIG | config
    _write_json(directory / "config.json", merged)
    generation = {key: value for key, value in merged.items() if key.endswith("_id")}
    _write_json(directory / "generation_config.json", generation)
    shapes = tuple((name, tuple(shape)) for name, shape in _shapes(merged).items())
    (directory / "model.safetensors").write_bytes(_weights(shapes, seed))
    write_tokenizer(directory)
    return directory


def make_tiny_adapter(directory: Path, r: int = 4) -> Path:
    """Write a random adapter of two layers of the tiny base, as PEFT stores it."""
    directory.mkdir(parents=True, exist_ok=True)
    targets = ["q_proj", "down_proj"]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": 2 * r, "target_modules": targets}
    _write_json(directory / "adapter_config.json", config)
    shapes = {}
    for name, (outputs, inputs) in ((n, s) for n, s in _shapes(CONFIG).items() if n.split(".")[-2] in targets):
        layer = "base_model.model." + name.removesuffix(".weight")
        shapes |= {layer + ".lora_A.weight": (r, inputs), layer + ".lora_B.weight": (outputs, r)}
    (directory / "adapter_model.safetensors").write_bytes(_weights(tuple(shapes.items()), seed=0))
    return directory


def make_tiny_dataset(path: Path, examples: int = 12, *, seed: int = 0) -> Path:
    """Write `examples` chat lines of uneven length: 40 to 120 tokens, 9 to 21 of them labelled."""
    rng = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_chat(number, rng)) + "\n" for number in range(examples)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def make_tiny_pairs(path: Path, pairs: int = 12, *, seed: int = 0) -> Path:
    """Write `pairs` preference pairs of uneven length: the sorted words are preferred to the unsorted ones."""
    rng = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(_pair(number, rng)) + "\n" for number in range(pairs)), encoding="utf-8")
    return path


def make_tiny_labelled(path: Path, examples: int = 12) -> Path:
    """Write `examples` rows of KTO: of each three, the second has an undesirable answer of `make_tiny_pairs`."""
    rows = []
    for number, pair in enumerate(map(json.loads, make_tiny_pairs(path, examples).read_text().splitlines())):
        answer = pair["non_preferred_output" if number % 3 == 1 else "preferred_output"]
        rows.append({"messages": pair["input"]["messages"] + answer, "label": number % 3 != 1})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _pair(number: int, rng: random.Random) -> dict[str, Any]:
    question, answer = _chat(number, rng)["messages"]
    rejected = {"role": "assistant", "content": question["content"][:: rng.choice((1, -1))]}
    return {"input": {"messages": [question]}, "preferred_output": [answer], "non_preferred_output": [rejected]}


def _chat(number: int, rng: random.Random) -> dict[str, Any]:
    words = [rng.choice(("red", "green", "blue", "amber")) for _ in range(rng.randint(1, 12))]
    return {
        "messages": [
            {"role": "user", "content": f"{number}: " + " ".join(words)},
            {"role": "assistant", "content": " ".join(sorted(set(words)))},
        ]
    }


@lru_cache(maxsize=8)
def _weights(shapes: tuple[tuple[str, tuple[int, ...]], ...], seed: int) -> bytes:
    """The random tensors of these shapes, as a safetensors file. Hundreds of tests have the same."""
    rng = random.Random(seed)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blob = bytearray()
    for name, shape in shapes:
        data = _bfloat16(_values(shape, rng))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(blob), len(blob) + len(data)]}
        blob += data
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + blob


def _shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden]}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": [hidden],
            at + "self_attn.q_proj.weight": [queries, hidden],
            at + "self_attn.k_proj.weight": [keys, hidden],
            at + "self_attn.v_proj.weight": [keys, hidden],
            at + "self_attn.o_proj.weight": [hidden, queries],
            at + "post_attention_layernorm.weight": [hidden],
            at + "mlp.gate_proj.weight": [inner, hidden],
            at + "mlp.up_proj.weight": [inner, hidden],
            at + "mlp.down_proj.weight": [hidden, inner],
        }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = [vocabulary, hidden]
    return shapes


def _values(shape: tuple[int, ...], rng: random.Random) -> array.array[float]:
    if len(shape) == 1:
        return array.array("f", (1 + 0.1 * rng.uniform(-1, 1) for _ in range(shape[0])))
    bound = (3 / shape[1]) ** 0.5  # uniform with variance 1 / fan-in: activations keep their size
    return array.array("f", (rng.uniform(-bound, bound) for _ in range(shape[0] * shape[1])))


def _bfloat16(values: array.array[float]) -> bytes:
    raw = values.tobytes()
    halves = bytearray(len(raw) // 2)
    halves[0::2], halves[1::2] = raw[2::4], raw[3::4]  # the upper half of a little-endian float32
    return bytes(halves)


def write_tokenizer(directory: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIALS[0],
            "eos_token": SPECIALS[2],
            "pad_token": SPECIALS[0],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 512,
        },
    )


def panic_at_many_a(directory: Path) -> None:
    """Give a base model a tokenizer whose regular expression gives up at 300 "a" before another character."""
    file = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    split = pre_tokenizers.Split(Regex("(a|aa)+$|(.*a){20}b"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.save(str(file))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
