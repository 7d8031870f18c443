"""The steps of a GGUF export: merge, answer, convert, quantize, compare; and the Modelfile for Ollama.

A Modelfile has the GGUF file, the chat template in Go's syntax, and the stop tokens. Ollama's templates are Go's, the
model's is Jinja's. The parts of a turn are found by rendering conversations of marked messages, and the result is
compared on further conversations. A template that is not a sequence of such turns gets no TEMPLATE line; Ollama then
uses what it recognizes in the GGUF file.

Source: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, GenerationConfig

from app.domain.artifacts.exports import Quantization
from app.domain.datasets.render import Renderer
from app.domain.datasets.template_arguments import ChatTemplateArguments, given_arguments
from app.system.artifact_directory import publish, read_manifest, write_manifest
from app.system.limited_rendering import limited_renderer
from app.system.model_files import weight_files
from worker.trainer.checkpoint.model_card import gguf_card
from worker.trainer.gguf.answers import CONTEXT_TOKENS, compare, greedy_answers, require_effect
from worker.trainer.gguf.converter import convert_adapter, convert_model
from worker.trainer.gguf.llama_cpp import RELEASE, LlamaCppModel, quantize
from worker.trainer.merge import merge

ADAPTER = "adapter"
ADAPTER_NAME = "adapter.gguf"
LICENCE_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
NAME = "Modelfile"
MARK = "\u00a4{}\u00a4"  # a content that no template contains
CHECKED_CONVERSATIONS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
)
NO_TEMPLATE = """\
# The model's chat template is not a sequence of turns, so this file has no TEMPLATE. The GGUF file contains the
# original; check what Ollama uses with `ollama show --template`.
"""


def export(base: Path, adapter: Path, destination: Path, kind: str) -> dict[str, Any]:
    """Write the export to `destination`, completely or not at all, and return its manifest.

    `kind` is a Quantization or "adapter". The disk holds at most the merged model and two GGUF files of it. Raises
    CannotMerge, CannotConvert, LlamaCppError, DifferentAnswers, OSError.
    """
    work = destination.with_name(f".{destination.name}.work")
    shutil.rmtree(work, ignore_errors=True)  # left by a crash
    merged, staged, intermediate = work / "merged", work / "staged", work / "intermediate.gguf"
    threads = torch.get_num_threads()
    try:
        merged_manifest = merge(base, adapter, merged)
        staged.mkdir()
        arguments = given_arguments(merged_manifest["adapter"])
        answers = greedy_answers(merged, arguments)
        if kind == ADAPTER:  # compared on the base as F16
            file, quantization = staged / ADAPTER_NAME, Quantization.F16
            convert_adapter(adapter, base, file)
            convert_model(base, intermediate, "f16")
            loaded = LlamaCppModel(intermediate, file, CONTEXT_TOKENS, threads)
        else:
            file, quantization = staged / f"model-{kind}.gguf", Quantization(kind)
            write_modelfile(staged, merged, file.name, arguments)
            if quantization == Quantization.F16:
                convert_model(merged, file, "f16")
            else:
                convert_model(merged, intermediate, "auto")
                for path in weight_files(merged):
                    path.unlink()
                quantize(intermediate, file, quantization, threads)
            loaded = LlamaCppModel(file, None, CONTEXT_TOKENS, threads)
        with loaded as model:
            figures = compare(model, answers, quantization)
        if kind == ADAPTER:
            figures = require_effect(figures, answers, base)
        for pattern in LICENCE_PATTERNS:
            for path in base.glob(pattern):
                shutil.copyfile(path, staged / path.name)
        manifest = {key: merged_manifest[key] for key in ("base_model", "adapter")}
        manifest["gguf"] = {"type": kind, "llama_cpp": RELEASE, "check": figures}
        (staged / "README.md").write_text(gguf_card(manifest, file.name), encoding="utf-8")
        write_manifest(staged, manifest)
        publish(staged, destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return read_manifest(destination)


class Turns(NamedTuple):
    """A chat template that is a sequence of turns, without the beginning-of-sequence token."""

    default_system: str  # at the beginning of a conversation without a system message
    before: dict[str, str]  # the text before a message's content, by role
    after: dict[str, str]
    generation: str  # after the last message


def write_modelfile(
    directory: Path, model_directory: Path, gguf_name: str, arguments: ChatTemplateArguments | None = None
) -> None:
    """Write the Modelfile beside the GGUF file; tokenizer and stop tokens are those of `model_directory`."""
    lines = [f"FROM ./{gguf_name}\n"]
    renderer = limited_renderer(model_directory).with_arguments(arguments)
    if renderer.template is not None:
        turns = find_turns(renderer)
        lines.append(f'TEMPLATE """{go_template(turns)}"""\n' if turns else NO_TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    ids = [tokenizer.eos_token_id]
    if (model_directory / "generation_config.json").exists():
        configured = GenerationConfig.from_pretrained(model_directory).eos_token_id
        ids += configured if isinstance(configured, list) else [configured]
    stops = [tokenizer.convert_ids_to_tokens(token) for token in dict.fromkeys(ids) if token is not None]
    lines += [f'PARAMETER stop "{token}"\n' for token in stops]
    (directory / NAME).write_text("".join(lines), encoding="utf-8")


def find_turns(renderer: Renderer) -> Turns | None:
    """The parts of the chat template; None if it is not a sequence of turns."""
    try:
        turns = _probe(renderer)
        rendered = {roles: _render(renderer, roles, generation=True) for roles in CHECKED_CONVERSATIONS}
    except ValueError:  # a template refuses roles that it does not know
        return None
    for roles, text in rendered.items():
        contents = [turns.before[role] + MARK.format(index) + turns.after[role] for index, role in enumerate(roles)]
        opening = "" if roles[0] == "system" else turns.default_system
        if opening + "".join(contents) + turns.generation != text:
            return None
    return None if '"""' in go_template(turns) else turns


def go_template(turns: Turns) -> str:
    """The template in Go's syntax."""
    default = turns.default_system
    first = f'{{{{ if and (eq $i 0) (ne .Role "system") }}}}{default}{{{{ end }}}}' if default else ""
    branches = [
        f'if eq .Role "{role}" }}}}{turns.before[role]}{{{{ .Content }}}}{turns.after[role]}' for role in turns.before
    ]
    by_role = "{{ " + "{{ else ".join(branches) + "{{ end }}"
    return f"{{{{ range $i, $_ := .Messages }}}}{first}{by_role}{{{{ end }}}}{turns.generation}"


def _probe(renderer: Renderer) -> Turns:
    """Read the parts out of rendered conversations. Raises ValueError if a mark is missing."""
    first, user_to_assistant, assistant_to_user, user_end = _parts(renderer, ("user", "assistant", "user"))
    assistant_end = _parts(renderer, ("user", "assistant"))[-1]
    before_system, system_to_user, _ = _parts(renderer, ("system", "user"))
    before_user = assistant_to_user.removeprefix(assistant_end)
    closed, open_for_answer = (_render(renderer, ("user",), generation) for generation in (False, True))
    return Turns(
        default_system=first.removesuffix(before_user),
        before={"system": before_system, "user": before_user, "assistant": user_to_assistant.removeprefix(user_end)},
        after={"system": system_to_user.removesuffix(before_user), "user": user_end, "assistant": assistant_end},
        generation=open_for_answer.removeprefix(closed),
    )


def _parts(renderer: Renderer, roles: Sequence[str]) -> list[str]:
    """The texts before, between and after the messages of a conversation. Raises ValueError."""
    parts, rest = [], _render(renderer, roles, generation=False)
    for index in range(len(roles)):
        part, mark, rest = rest.partition(MARK.format(index))
        if not mark:
            raise ValueError(f"message {index} of {roles} is missing")
        parts.append(part)
    return [*parts, rest]


def _render(renderer: Renderer, roles: Sequence[str], generation: bool) -> str:
    messages = [{"role": role, "content": MARK.format(index)} for index, role in enumerate(roles)]
    text = renderer.text(messages, prompt=generation)
    return text.removeprefix(renderer.special_tokens.get("bos_token", ""))
