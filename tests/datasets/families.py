"""The common families of chat templates in short form, and what a renderer reads of base models that have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIALS = (
    "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<bos>", "<eos>",
    "<start_of_turn>", "<end_of_turn>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|user|>",
    "<|assistant|>", "<|end|>",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """`answer` is what the template makes of an answer; `keeps_its_past` whether earlier turns stay as they were."""

    name: str
    template: str
    eos: str
    end: str
    stops: tuple[str, ...] = ()
    bos: str | None = None
    answer: Callable[[str], str] = lambda content: content
    takes_system: bool = True
    keeps_its_past: bool = True
    keeps_its_past_with_system: bool = True

    def __str__(self) -> str:
        return self.name


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HERMES = (  # ChatML with tools, as Qwen 2.5 has it
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + "
    "'\\n</tool_response><|im_end|>\\n' }}{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>\\n' }}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}{{ '\\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') }}"
    "{{ m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (  # system prompt and tools stand in the last question
    "{% set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}"
    "{% set rest = messages[1:] if system else messages %}{{ bos_token }}{% set ns = namespace(last=-1) %}"
    "{% for m in rest %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in rest %}{% if m.role == 'user' %}{% if loop.index0 == ns.last %}"
    "{% if tools %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST] ' + system + m.content + '[/INST]' }}{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}"
    "{% elif m.tool_calls %}{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}{% endfor %}"
    "{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{{ ']' + eos_token }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
QWEN_3 = (  # forgets what it thought before the last question
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set thought = '' %}{% if '</think>' in m.content %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}{% endif %}"
    "{% set said = m.content.split('</think>')[-1].lstrip('\\n') %}{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.index0 > ns.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ said + '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
GPT_OSS = (  # the effort stands before the conversation
    "{% macro system() %}{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "{{ '<|im_start|>system\\nReasoning: ' + reasoning_effort + '<|im_end|>\\n' }}{% endmacro %}{{ system() }}" + CHATML
)
WITH_DOCUMENTS = "{% for d in documents or [] %}{{ d.title + ': ' + d.text + '\\n' }}{% endfor %}" + CHATML
DEEPSEEK = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
DEEPSEEK_R1 = DEEPSEEK.replace("{{ '<｜Assistant｜>' }}", "{{ '<｜Assistant｜><think>\\n' }}")
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (  # the generation prompt has no newline, and after the end of a turn there is one
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WORDS = (  # no special token but at the end, and a prompt that ends in a space
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
MERGING = (  # the system prompt begins the first question
    "{% set system = messages[0].content + '\\n' if messages[0].role == 'system' else '' %}"
    "{% set rest = messages[1:] if system else messages %}{% for m in rest %}"
    "{{ '<|im_start|>' + m.role + '\\n' + (system if loop.first else '') + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FORGETFUL = (  # no answer but the newest is kept
    "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

NAMED = (  # prints the names of users, and of nobody else
    "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.name and m.role == 'user' %}{{ ' name=' + m.name }}"
    "{% endif %}{{ '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REASONING = (  # as Qwen 3 has it: printed before the answer, and no longer once another question follows
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and m.reasoning_content is string and loop.index0 > ns.last %}"
    "{{ '<think>\\n' + m.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINKING = REASONING.replace("reasoning_content", "thinking")  # as gpt-oss calls it


def _trimmed(content: str) -> str:
    return content.strip()


FAMILIES = (
    Family("chatml", CHATML, "<|im_end|>", "<|im_end|>"),
    Family("chatml-whose-eos-is-another", CHATML, "<|endoftext|>", "<|im_end|>"),
    Family("chatml-whose-files-name-both", CHATML, "<|endoftext|>", "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
    Family("hermes", HERMES, "<|im_end|>", "<|im_end|>"),
    Family("smollm2", SMOLLM2, "<|im_end|>", "<|im_end|>"),
    Family("llama-2", LLAMA_2, "</s>", "</s>", bos="<s>", answer=lambda content: f" {content.strip()} "),
    Family("llama-3", LLAMA_3, "<|end_of_text|>", "<|eot_id|>", ("<|end_of_text|>", "<|eot_id|>"),
           "<|begin_of_text|>", _trimmed),
    Family("llama-3-whose-files-name-one", LLAMA_3, "<|end_of_text|>", "<|eot_id|>", bos="<|begin_of_text|>",
           answer=_trimmed),
    Family("mistral", MISTRAL, "</s>", "</s>", bos="<s>", answer=lambda content: f" {content}",
           keeps_its_past_with_system=False),
    Family("gemma", GEMMA, "<eos>", "<end_of_turn>", ("<eos>", "<end_of_turn>"), "<bos>", _trimmed, takes_system=False),
    Family("qwen-3", QWEN_3, "<|im_end|>", "<|im_end|>", keeps_its_past=False,
           answer=lambda content: "<think>\n\n</think>\n\n" + content.lstrip("\n")),
    Family("deepseek", DEEPSEEK, "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    Family("phi-3", PHI_3, "<|endoftext|>", "<|end|>", ("<|endoftext|>", "<|assistant|>", "<|end|>")),
    Family("zephyr", ZEPHYR, "</s>", "</s>", answer=lambda content: f"\n{content}"),
    Family("words", WORDS, "</s>", "</s>"),
    Family("merging", MERGING, "<|im_end|>", "<|im_end|>"),
    Family("forgetful", FORGETFUL, "<|im_end|>", "<|im_end|>", keeps_its_past=False),
)  # fmt: skip


def write_family(directory: Path, family: Family, tokenizer: Tokenizer) -> Path:
    """What a renderer reads of a base model."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {"eos_token": family.eos, "bos_token": family.bos}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(family.template, encoding="utf-8")
    if family.stops:
        ids = [tokenizer.token_to_id(stop) for stop in family.stops]
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return directory


def make_sentencepiece_tokenizer() -> Tokenizer:
    """Begins every text that it is given with a space, as Llama 2's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    specials = [AddedToken(token, special=True) for token in SPECIALS]
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=specials,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the answer is the question"], trainer)
    return tokenizer


def make_tokenizer(bos: str | None = None) -> Tokenizer:
    """Byte-level BPE whose merges cross the borders of answers: newlines, a space before a word.

    As GPT-2's it trims the offsets it gives, or begins each text with `bos`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[AddedToken(token, special=True) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["assistant\n\n\na b \n\n user\n\n  a\n\n\n\nab ab the the"] * 50, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if bos is not None:
        begin = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=begin)
    return tokenizer
