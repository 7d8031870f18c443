"""Checks that a model's chat template prints all of a conversation. What it omits is refused, with a remedy.

A template is rendered, not parsed: if the text is the same without a call, a tool or reasoning, the template does not
print it. Long conversations are checked in parts, so that the time grows linearly with their length.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from app.domain.datasets.chat_template import Message, TemplateRefused
from app.domain.datasets.conversation_parts import Part
from app.domain.datasets.messages import REASONING_KEYS
from app.domain.error_text.json_text import as_json

# Renderer.renders_differently: (messages, tools, fewer messages, fewer tools) -> whether their texts differ
RendersDifferently = Callable[[list[Message], Sequence[Message], list[Message], Sequence[Message]], bool]


class ToolsNotPrinted(TemplateRefused):
    """The template has no place for tools."""


def check_tools(prints: RendersDifferently, messages: list[Message], tools: Sequence[Message]) -> None:
    """Raise ToolsNotPrinted for tools that the template does not print."""
    if tools and not prints(messages, tools, messages, ()):
        text = _not_printed_text("tools", "the tools of this line would be left out", "describe them in a message")
        raise ToolsNotPrinted(text)


def check_context_messages(prints: RendersDifferently, part: Part, trained: Collection[int]) -> None:
    """Raise TemplateRefused for tool results, and for untrained reasoning and calls, that the template does not print.

    `trained` are indices of the conversation.
    """
    for turn in part.turns:
        message, before, through = part.message(turn), part.before(turn), part.through(turn)
        if message["role"] == "tool" and not prints(through, part.tools, before, part.tools):
            left_out = f"message {turn + 1} would be left out"
            raise TemplateRefused(_not_printed_text("the results of tools", left_out, "write it as a user's message"))
        if message["role"] == "assistant" and turn not in trained:
            check_reasoning(prints, part, turn)
        if message.get("tool_calls") and turn not in trained:
            without_calls = {key: value for key, value in message.items() if key != "tool_calls"}
            if not prints(through, part.tools, [*before, without_calls], part.tools):
                what = f"the call of message {turn + 1} would be left out"
                raise TemplateRefused(_not_printed_text("tool calls", what, "write the call into the content"))


def check_reasoning(prints: RendersDifferently, part: Part, turn: int, trained_text: str = "") -> None:
    """Raise TemplateRefused for reasoning that the template does not print, or not in `trained_text`, if given."""
    message, before, tools = part.message(turn), part.before(turn), part.tools
    for key in REASONING_KEYS:
        reasoning = message.get(key, "").strip()
        if not reasoning:
            continue
        without = {name: value for name, value in message.items() if name != key}
        is_printed = prints([*before, message], tools, [*before, without], tools)
        if is_printed and (not trained_text or reasoning in trained_text):
            continue
        raise TemplateRefused(
            f"message {turn + 1}: the model's chat template does not print {key}, so it would be left out; write it "
            f"into the content as the template writes it, or choose a model whose template prints {key}"
        )


def check_trained_calls(message: Message, turn: int, trained_text: str) -> None:
    """Raise TemplateRefused for a call whose name is not in `trained_text`, the text of its turn.

    A template prints calls in order, so each search starts at the previous call: a message may have thousands.
    """
    position = 0
    for call in message.get("tool_calls", ()):
        name = call["function"]["name"]
        position = trained_text.find(name, position)
        if position < 0:
            position = trained_text.find(name)
        if position < 0:
            raise _call_not_printed_error(turn, call)


def check_each_call(prints: RendersDifferently, part: Part, trained: Collection[int]) -> None:
    """Raise TemplateRefused for a trained call that the template does not print.

    The name of the call may also be in the content, and a template may print only the first of several calls. Only the
    first and the last call of a message are checked: checking all of them would take quadratic time.
    """
    for turn in part.turns:
        message, before = part.message(turn), part.before(turn)
        calls = message.get("tool_calls", []) if turn in trained else []
        for number in sorted({0, len(calls) - 1}) if calls else ():
            others = {"tool_calls": rest} if (rest := calls[:number] + calls[number + 1 :]) else {}
            fewer = {key: value for key, value in message.items() if key != "tool_calls"} | others
            if not prints([*before, message], part.tools, [*before, fewer], part.tools):
                raise _call_not_printed_error(turn, calls[number])


def _call_not_printed_error(turn: int, call: Message) -> TemplateRefused:
    name = as_json(call["function"]["name"])
    return TemplateRefused(
        f"message {turn + 1}: the model's chat template does not print tool calls, so {name} "
        "would not be trained; write the call into the content, or choose a base model whose template supports tools"
    )


def _not_printed_text(what: str, left_out: str, instead: str) -> str:
    return (
        f"the model's chat template does not print {what}, so {left_out}; {instead}, or choose a base model whose "
        "template supports tools"
    )
