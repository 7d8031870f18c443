"""Whether a model's chat template prints all of a conversation: what it leaves out is refused, with what to do.

A template is rendered, not read: a text that stays the same without a call, a tool or a thought does not have it.
A long conversation is checked part by part, so that the time grows with its length.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from app.domain.datasets.chat_template import Message, TemplateRefused
from app.domain.datasets.conversation_parts import Part
from app.domain.datasets.messages import REASONING_KEYS
from app.domain.error_text.json_text import as_json

# Renderer.prints: (messages, tools, fewer messages, fewer tools) -> whether their texts differ
Prints = Callable[[list[Message], Sequence[Message], list[Message], Sequence[Message]], bool]


def check_tools(prints: Prints, messages: list[Message], tools: Sequence[Message]) -> None:
    """Raise TemplateRefused for tools that the model would not see."""
    if tools and not prints(messages, tools, messages, ()):
        raise _unprinted("tools", "the tools of this line would be left out", "describe them in a message")


def check_context(prints: Prints, part: Part, learned: Collection[int]) -> None:
    """Raise TemplateRefused for results, and reasoning and calls that are not learned, that the model would not see.

    `learned` are indices of the conversation.
    """
    for turn in part.turns:
        message, before, through = part.message(turn), part.before(turn), part.through(turn)
        if message["role"] == "tool" and not prints(through, part.tools, before, part.tools):
            raise _unprinted(
                "the results of tools", f"message {turn + 1} would be left out", "write it as a user's message"
            )
        if message["role"] == "assistant" and turn not in learned:
            check_reasoning(prints, part, turn)
        if message.get("tool_calls") and turn not in learned:
            silent = {key: value for key, value in message.items() if key != "tool_calls"}
            if not prints(through, part.tools, [*before, silent], part.tools):
                what = f"the call of message {turn + 1} would be left out"
                raise _unprinted("tool calls", what, "write the call into the content")


def check_reasoning(prints: Prints, part: Part, turn: int, learned: str = "") -> None:
    """Reasoning stands in the text of its turn, or is refused; `learned` is where it must stand to be learned."""
    message, before, tools = part.message(turn), part.before(turn), part.tools
    for key in REASONING_KEYS:
        thought = message.get(key, "").strip()
        if not thought:
            continue
        without = {name: value for name, value in message.items() if name != key}
        is_printed = prints([*before, message], tools, [*before, without], tools)
        if is_printed and (not learned or thought in learned):
            continue
        other = next(name for name in REASONING_KEYS if name != key)
        renamed = without | {other: message[key]}
        remedy = f"write it into the content as the template writes it, or choose a model whose template prints {key}"
        if other not in message and prints([*before, renamed], tools, [*before, without], tools):
            remedy = f"rename the key to {other}, which it prints"
        raise TemplateRefused(
            f"message {turn + 1}: the model's chat template does not print {key}, so it would be left out; {remedy}"
        )


def check_learned_calls(message: Message, turn: int, learned: str) -> None:
    """Raise TemplateRefused for a call whose name is not in `learned`, the text of its turn.

    A template prints calls in their order, so each is looked for from the one before on: a message may have thousands.
    """
    position = 0
    for call in message.get("tool_calls", ()):
        name = call["function"]["name"]
        position = learned.find(name, position)
        if position < 0:
            position = learned.find(name)
        if position < 0:
            raise _unlearned_call(turn, call)


def check_each_call(prints: Prints, part: Part, learned: Collection[int]) -> None:
    """The name of a call may stand in the content, too, and a template may print the first of several only.

    Asked of a message's first and last call: of each, a message with many would be rendered in quadratic time.
    """
    for turn in part.turns:
        message, before = part.message(turn), part.before(turn)
        calls = message.get("tool_calls", []) if turn in learned else []
        for number in sorted({0, len(calls) - 1}) if calls else ():
            others = {"tool_calls": rest} if (rest := calls[:number] + calls[number + 1 :]) else {}
            fewer = {key: value for key, value in message.items() if key != "tool_calls"} | others
            if not prints([*before, message], part.tools, [*before, fewer], part.tools):
                raise _unlearned_call(turn, calls[number])


def _unlearned_call(turn: int, call: Message) -> TemplateRefused:
    name = as_json(call["function"]["name"])
    return TemplateRefused(
        f"message {turn + 1}: the model's chat template does not print tool calls, so {name} "
        "would not be learned; write the call into the content, or choose a base model whose template knows tools"
    )


def _unprinted(what: str, left_out: str, instead: str) -> TemplateRefused:
    return TemplateRefused(
        f"the model's chat template does not print {what}, so {left_out}; {instead}, or choose a base model whose "
        "template knows tools"
    )
