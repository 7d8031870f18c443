"""Chat template -> tokens and loss mask, as plain lists: what the model sees, and which of it is learned.

The mask follows from the template the adapter will be served with. A turn is learned from where generation would start
(the template rendered up to it, with the generation prompt) to the end-of-turn token that generation would produce.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from app.domain.dataset import Example


class TemplateRefused(ValueError):
    """The chat template cannot render this example; the message is the template's own, for the user."""


@dataclass(frozen=True)
class Document:
    """Tokens that attend to each other, and for each whether it is a target of the loss (never the first one)."""

    line: int
    tokens: list[int]
    labelled: list[bool]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labelled_count(self) -> int:
        return sum(self.labelled)


@dataclass(frozen=True)
class _Span:
    start: int  # characters of the rendered text
    end: int


class Renderer:
    """A tokenizer and its chat template, read from a base model's directory without importing transformers or torch."""

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None, specials: dict[str, str]) -> None:
        self.tokenizer = tokenizer
        self.specials = specials
        self.eos = specials.get("eos_token", "")
        self.template = _environment().from_string(chat_template) if chat_template else None

    @classmethod
    def from_directory(cls, directory: Path) -> Renderer:
        config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        specials = {key: _token_text(value) for key, value in config.items() if key.endswith("_token") and value}
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, _read_template(directory, config), specials)

    def documents(self, example: Example) -> list[Document]:
        """One document, or one per learned turn where the template renders earlier turns differently later on.

        Raises TemplateRefused.
        """
        if not example.is_chat:
            return [self._completion(example)]
        messages = [_for_template(message) for message in example.messages]
        learned = [i for i, message in enumerate(example.messages) if _is_learned(message)]
        whole = self.text(messages, example.tools)
        spans = [self._span(messages, i, example.tools, whole) for i in learned]
        stable = [span for span in spans if span is not None]
        if len(stable) == len(spans):
            return [self._document(example.line, whole, stable)]
        return [self._turn(example, messages, i) for i in learned]

    def text(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = (), prompt: bool = False
    ) -> str:
        """The template's text; `prompt` adds what precedes an answer. Raises TemplateRefused."""
        if self.template is None:
            raise TemplateRefused("the base model's tokenizer has no chat template; use prompt/completion lines")
        try:
            return self.template.render(
                messages=list(messages),
                tools=list(tools) or None,
                add_generation_prompt=prompt,
                **self.specials,
            )
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError) as error:
            raise TemplateRefused(f"the model's chat template refuses this conversation: {error}") from error

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _span(
        self, messages: list[dict[str, Any]], turn: int, tools: Sequence[dict[str, Any]], whole: str
    ) -> _Span | None:
        before = self.text(messages[:turn], tools, prompt=True)
        through = self.text(messages[: turn + 1], tools)
        if not (whole.startswith(through) and through.startswith(before)):
            return None
        return _Span(len(before), self._end_of_turn(through, len(before)))

    def _turn(self, example: Example, messages: list[dict[str, Any]], turn: int) -> Document:
        before = self.text(messages[:turn], example.tools, prompt=True)
        through = self.text(messages[: turn + 1], example.tools)
        if not through.startswith(before):
            raise TemplateRefused(
                f"message {turn + 1}: the model's chat template does not begin an answer with its generation prompt, "
                "so what is learned would not be what is generated"
            )
        return self._document(example.line, through, [_Span(len(before), self._end_of_turn(through, len(before)))])

    def _end_of_turn(self, text: str, start: int) -> int:
        """Generation stops at the end-of-sequence token: what a template prints after it is never generated."""
        at = text.rfind(self.eos, start) if self.eos else -1
        return at + len(self.eos) if at >= 0 else len(text)

    def _completion(self, example: Example) -> Document:
        prompt, completion = str(example.prompt), str(example.completion)
        text = prompt + completion + self.eos
        return self._document(example.line, text, [_Span(len(prompt), len(text))])

    def _document(self, line: int, text: str, spans: Sequence[_Span]) -> Document:
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        labelled = [any(span.start <= start < span.end for span in spans) for start, _ in encoding.offsets]
        if labelled:
            labelled[0] = False  # nothing precedes the first token, so nothing can predict it
        return Document(line, list(encoding.ids), labelled)


def cut(document: Document, context_length: int) -> Document:
    """Cut a document at its end, as OpenAI does; the caller reports it."""
    if len(document) <= context_length:
        return document
    return Document(document.line, document.tokens[:context_length], document.labelled[:context_length])


def learned(documents: Iterable[Document]) -> list[Document]:
    """What of an example is trained on: a document without anything to learn contributes nothing."""
    return [document for document in documents if document.labelled_count]


def _is_learned(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """What templates expect: plain text content, tool arguments as an object, `developer` called `system`."""
    shaped = {key: value for key, value in message.items() if key not in ("weight", "refusal") and value is not None}
    if message["role"] == "developer":
        shaped["role"] = "system"
    if isinstance(message.get("content"), list):
        shaped["content"] = "".join(part["text"] for part in message["content"])
    shaped.setdefault("content", message.get("refusal") or "")
    if message.get("tool_calls"):
        shaped["tool_calls"] = [_with_parsed_arguments(call) for call in message["tool_calls"]]
    return shaped


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    with contextlib.suppress(ValueError):  # not JSON: the template prints the string as it is
        function["arguments"] = json.loads(function["arguments"])
    return {**call, "function": function}


def _token_text(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else str(value)


def _read_template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


class _Generation(Extension):
    """`{% generation %}` marks answers for other trainers; our mask does not need it, so it is passed through."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares a plain set)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    """The sandbox that transformers renders chat templates in: same whitespace rules, same helpers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def supervised_texts(renderer: Renderer, document: Document) -> Iterator[str]:
    """The learned stretches of a document as text, for previews and tests."""
    stretch: list[int] = []
    for token, is_labelled in zip([*document.tokens, 0], [*document.labelled, False], strict=True):
        if is_labelled:
            stretch.append(token)
        elif stretch:
            yield str(renderer.tokenizer.decode(stretch, skip_special_tokens=False))
            stretch = []
