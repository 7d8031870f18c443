"""Whether a model's chat template prints all of a conversation: what it leaves out is refused, with what to do.

A template is rendered, not read: a text that stays the same without a call, a tool or a result does not have it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from app.domain.chat_template import Message, TemplateRefused

# Renderer.prints: (messages, tools, fewer messages, fewer tools) -> whether their texts differ
Prints = Callable[[list[Message], Sequence[Message], list[Message], Sequence[Message]], bool]


def check_tools(prints: Prints, messages: list[Message], tools: Sequence[Message]) -> None:
    """Raise TemplateRefused for tools that the model would not see."""
    if tools and not prints(messages, tools, messages, ()):
        raise _unprinted("tools", f"the {len(tools)} of this line would be left out", "describe them in a message")


def check_turns(
    prints: Prints,
    messages: list[Message],
    learned: Collection[int],
    tools: Sequence[Message],
    first: int = 0,
    offset: int = 0,
) -> None:
    """Raise TemplateRefused for results, and calls that are not learned, that the model would not see.

    Looked at are the messages from the index `first` on. In the whole conversation the list begins at `offset`.
    """
    for turn in range(first, len(messages)):
        message, through, before = messages[turn], messages[: turn + 1], messages[:turn]
        number = offset + turn + 1
        if message["role"] == "tool" and not prints(through, tools, before, tools):
            raise _unprinted("the results of tools", f"message {number} would be left out", "write it as a user's")
        if message.get("tool_calls") and turn not in learned:
            silent = {key: value for key, value in message.items() if key != "tool_calls"}
            if not prints(through, tools, [*before, silent], tools):
                what = f"that of message {number} would be left out"
                raise _unprinted("tool calls", what, "write the call into the content")


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
            raise TemplateRefused(
                f"message {turn + 1}: the model's chat template does not print tool calls, so {name!r} would not be "
                "learned; write the call into the content, or choose a base model whose template knows tools"
            )


def _unprinted(what: str, left_out: str, instead: str) -> TemplateRefused:
    return TemplateRefused(
        f"the model's chat template does not print {what}, so {left_out}; {instead}, or choose a base model whose "
        "template knows tools"
    )
