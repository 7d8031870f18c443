"""A model's own chat template: conversations -> text, rendered as transformers does, without importing it.

Data sets are OpenAI's, templates are not: what the former have and the latter never heard of is put into the words that
templates know, here and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, Any]


# What a template's own expressions raise: 1 // 0, an index beyond the end, a macro that calls itself over deep tools.
OF_A_TEMPLATE = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError
)  # fmt: skip


class TemplateRefused(ValueError):
    """The chat template cannot render this example; the message is the template's own, for the user."""


class ChatTemplate:
    """One template, the names of the model's special tokens that it may print, and the time that it may ask for.

    The time stands still: one that went on would give one conversation two texts.
    """

    def __init__(self, source: str, specials: Mapping[str, str], now: datetime) -> None:
        self._template = _environment(now).from_string(source)
        self._specials = specials

    def text(self, messages: Sequence[Message], tools: Sequence[Message] = (), prompt: bool = False) -> str:
        """The template's text; `prompt` adds what precedes an answer. Raises TemplateRefused."""
        try:
            return self._template.render(
                messages=list(messages),
                tools=list(tools) or None,
                add_generation_prompt=prompt,
                **self._specials,
            )
        except OF_A_TEMPLATE as error:
            raise TemplateRefused(f"the model's chat template refuses this conversation: {error}") from error


def for_template(messages: Sequence[Message]) -> list[Message]:
    """What templates expect: plain text content, tool arguments as an object, `developer` called `system`.

    OpenAI's older function calls become tool calls, which is what every template knows.
    """
    shaped: list[Message] = []
    call_id = ""
    for number, message in enumerate(messages):
        if message.get("function_call"):
            call_id = f"call{number:05d}"  # nine letters and digits: Mistral's templates take no other
        shaped.append(_shape(message, call_id))
    return shaped


def content_text(message: Message) -> str:
    """The text of a message, whose content may be a string, a list of text parts, or null."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _shape(message: Message, call_id: str) -> Message:
    shaped = {key: value for key, value in message.items() if key not in ("weight", "refusal") and value is not None}
    if message["role"] == "developer":
        shaped["role"] = "system"
    if message["role"] == "function":
        shaped |= {"role": "tool", "tool_call_id": call_id}
    if isinstance(message.get("content"), list):
        shaped["content"] = content_text(message)
    shaped.setdefault("content", message.get("refusal") or "")
    if function := shaped.pop("function_call", None):
        shaped.setdefault("tool_calls", [{"id": call_id, "type": "function", "function": function}])
    if calls := shaped.get("tool_calls"):
        shaped["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
    return shaped


def _with_parsed_arguments(call: Message) -> Message:
    function = dict(call["function"])
    with contextlib.suppress(ValueError):  # not JSON: the template prints the string as it is
        arguments = json.loads(function["arguments"])
        function["arguments"] = arguments if isinstance(arguments, dict) else function["arguments"]
    return {**call, "function": function}


class _Generation(Extension):
    """`{% generation %}` marks answers for other trainers; our mask does not need it, so it is passed through."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares a plain set)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: datetime) -> jinja2.Environment:
    """The sandbox that transformers renders chat templates in: same whitespace rules, same helpers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = now.strftime
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
