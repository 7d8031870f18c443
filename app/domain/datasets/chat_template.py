"""A model's chat template: conversations -> text, rendered as in transformers, without importing it.

Datasets have OpenAI's format, but templates do not support all of it. This module converts the rest to what templates
support.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.domain.datasets.messages import REASONING_KEYS

Message = dict[str, Any]

MAX_TEXT_CHARACTERS = 16 << 20  # of a rendered conversation; a line of a dataset has 4 MiB

# Errors of a template's expressions: 1 // 0, an index beyond the end, a macro that recurses over deeply nested tools.
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class TemplateRefused(ValueError):
    """The chat template cannot render this example; the message is for the user."""


class UnusableTemplate(ValueError):
    """The chat template is invalid, or takes too much time or memory; it is not tried on other conversations."""


class ChatTemplate:
    """A template, the special tokens and the time that it may print.

    The time is fixed, so that a conversation always has the same text. A template is a program without a limit of time
    and memory: only app.system.limited_rendering runs it, in a process that has them.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], now: datetime) -> None:
        self.source = source
        self.special_tokens = special_tokens
        self.now = now

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] = (),
        prompt: bool = False,
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The rendered conversation; `prompt` adds the generation prompt. Raises TemplateRefused, UnusableTemplate."""
        try:
            text = self._template.render(
                messages=list(messages),
                tools=list(tools) or None,
                add_generation_prompt=prompt,
                **self.special_tokens,
                **arguments,
            )
        except MemoryError as error:
            raise UnusableTemplate("the model's chat template takes too much memory") from error
        except UnusableTemplate:
            raise
        except TEMPLATE_ERRORS as error:
            raise TemplateRefused(f"the model's chat template refuses this conversation: {error}") from error
        if len(text) > MAX_TEXT_CHARACTERS:
            raise UnusableTemplate(
                f"the model's chat template makes {len(text):,} characters of a conversation; at most "
                f"{MAX_TEXT_CHARACTERS:,} are allowed"
            )
        return text

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that the template reads. Raises UnusableTemplate; as slow as the compiler, which finds them."""
        return frozenset(meta.find_undeclared_variables(self._template.environment.parse(self.source)))

    @cached_property
    def _template(self) -> jinja2.Template:
        """Compiled at the first use, as the compiler computes constant expressions. Raises UnusableTemplate."""
        try:
            return _environment(self.now).from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UnusableTemplate(f"the model's chat template is invalid ({error})") from error


def normalize_messages(messages: Sequence[Message]) -> list[Message]:
    """The messages as templates expect them: text content, tool arguments as an object, `system` for `developer`.

    OpenAI's older function calls become tool calls, which templates support.
    """
    normalized: list[Message] = []
    call_id = ""
    for number, message in enumerate(messages):
        if message.get("function_call"):
            call_id = f"call{number:05d}"  # Mistral's templates require nine letters and digits
        normalized.append(_normalize(message, call_id))
    return normalized


def with_reasoning_as(key: str, message: Message) -> Message:
    """The message with its reasoning under `key`; unchanged if it has two reasonings or none."""
    other = next(name for name in REASONING_KEYS if name != key)
    if not message.get(other) or message.get(key):
        return message
    return {name: value for name, value in message.items() if name != other} | {key: message[other]}


def content_text(message: Message) -> str:
    """The text of a message, whose content may be a string, a list of text parts, or null."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _normalize(message: Message, call_id: str) -> Message:
    normalized = {
        key: value for key, value in message.items() if key not in ("weight", "refusal") and value is not None
    }
    if message["role"] == "developer":
        normalized["role"] = "system"
    if message["role"] == "function":
        normalized |= {"role": "tool", "tool_call_id": call_id}
    if isinstance(message.get("content"), list):
        normalized["content"] = content_text(message)
    normalized.setdefault("content", message.get("refusal") or "")
    if function := normalized.pop("function_call", None):
        normalized.setdefault("tool_calls", [{"id": call_id, "type": "function", "function": function}])
    if calls := normalized.get("tool_calls"):
        normalized["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
    return normalized


def _with_parsed_arguments(call: Message) -> Message:
    function = dict(call["function"])
    with contextlib.suppress(ValueError):  # if it is not JSON, the template prints the string
        arguments = json.loads(function["arguments"])
        function["arguments"] = arguments if isinstance(arguments, dict) else function["arguments"]
    return {**call, "function": function}


class _Generation(Extension):
    """`{% generation %}` marks the trained text for other trainers; it is ignored here."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares a plain set)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: datetime) -> jinja2.Environment:
    """The same sandbox as in transformers: white space rules and helper functions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = now.strftime
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
