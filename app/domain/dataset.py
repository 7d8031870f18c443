"""What one training example may be: OpenAI's chat lines, or a prompt and its completion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.domain.jsonl import MAX_LINE_BYTES, Finding, Line, json_type, quote, read_lines

MAX_FINDINGS = 10


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class FunctionCall(_Strict):
    name: str
    arguments: str


class ToolCall(_Strict):
    id: str
    type: Literal["function"]
    function: FunctionCall


Content = str | list[TextPart]


class PromptMessage(_Strict):
    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None


class AssistantMessage(_Strict):
    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    weight: Literal[0, 1] | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    function_call: FunctionCall | None = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls and self.function_call is None:
            raise ValueError("an assistant message needs content or tool_calls")
        return self


class ToolMessage(_Strict):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


class FunctionMessage(_Strict):
    role: Literal["function"]
    name: str
    content: str | None


MESSAGE_BY_ROLE: dict[str, type[_Strict]] = {
    "system": PromptMessage,
    "developer": PromptMessage,
    "user": PromptMessage,
    "assistant": AssistantMessage,
    "tool": ToolMessage,
    "function": FunctionMessage,
}
CHAT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls", "functions"})
COMPLETION_KEYS = frozenset({"prompt", "completion"})


@dataclass(frozen=True)
class Example:
    """One training example. Chat: `messages` (and `tools`); completion: one prompt, one completion."""

    line: int
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    prompt: str | None = None
    completion: str | None = None

    @property
    def is_chat(self) -> bool:
        return self.completion is None


def read_examples(file: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Example | Finding]:
    """Yield every example of a supervised data set, or the findings of the line that should have been one."""
    for line in read_lines(file, max_line_bytes):
        if isinstance(line, Finding):
            yield line
        else:
            yield from _check_example(line)


def _check_example(line: Line) -> Iterator[Example | Finding]:
    value = line.value
    if "messages" in value:
        findings = list(_chat_findings(line))
        yield from findings if findings else (_chat_example(line),)
    elif "prompt" in value or "completion" in value:
        findings = list(_completion_findings(line))
        yield from findings if findings else (_completion_example(line),)
    elif "preferred_output" in value or "preferred_completion" in value:
        yield Finding(line.number, "a preference pair, but this job's method is supervised", "wrong_format")
    else:
        yield Finding(
            line.number,
            'unexpected format: expected chat messages ({"messages": [...]}) or a prompt/completion pair; '
            f"found the keys {_names(value)}",
            "wrong_format",
        )


def _chat_findings(line: Line) -> Iterator[Finding]:
    value = line.value
    if extra := value.keys() - CHAT_KEYS:
        yield Finding(
            line.number,
            f"contains an extra key {_names(extra)}; allowed are {_names(CHAT_KEYS)}",
            "extra_key",
        )
    for key in ("tools", "functions"):
        if value.get(key) is not None and not _is_list_of_objects(value[key]):
            yield Finding(line.number, f'"{key}" must be a list of objects', "invalid_tools")
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        yield Finding(line.number, '"messages" must be a list with at least one message', "invalid_messages")
        return
    found = [f for number, message in enumerate(messages, 1) for f in _message_findings(line.number, number, message)]
    yield from found
    if not found and messages[-1]["role"] != "assistant":
        yield Finding(
            line.number,
            f'the last message is from "{messages[-1]["role"]}", but it must be from "assistant", as that is learned',
            "last_message_not_assistant",
        )


def _message_findings(line: int, number: int, message: Any) -> Iterator[Finding]:
    if not isinstance(message, dict):
        yield Finding(line, f"message {number} is a JSON {json_type(message)}, not an object", "invalid_message")
        return
    role = message.get("role")
    if not isinstance(role, str) or role not in MESSAGE_BY_ROLE:
        yield Finding(
            line, f"message {number} {_seen_role(role)}; allowed are {_names(MESSAGE_BY_ROLE)}", "invalid_role"
        )
        return
    try:
        MESSAGE_BY_ROLE[role].model_validate(message)
    except ValidationError as error:
        yield Finding(line, f"message {number} ({role}): {_first_problem(error)}", "invalid_message")


def _completion_findings(line: Line) -> Iterator[Finding]:
    value = line.value
    if extra := value.keys() - COMPLETION_KEYS:
        yield Finding(line.number, f"contains an extra key {_names(extra)} beside prompt and completion", "extra_key")
    for key in sorted(COMPLETION_KEYS, reverse=True):
        if not isinstance(value.get(key), str):
            seen = "is missing" if key not in value else f"is a JSON {json_type(value[key])}"
            yield Finding(line.number, f'"{key}" {seen}, but it must be a string', "invalid_completion")


def _chat_example(line: Line) -> Example:
    tools = line.value.get("tools") or [
        {"type": "function", "function": function} for function in line.value.get("functions") or ()
    ]
    return Example(line.number, messages=tuple(line.value["messages"]), tools=tuple(tools))


def _completion_example(line: Line) -> Example:
    return Example(line.number, prompt=line.value["prompt"], completion=line.value["completion"])


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"contains an extra key {quote(where)}"
    text = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _seen_role(role: Any) -> str:
    if role is None:
        return "has no role"
    return (
        f"has the unknown role {quote(role)}"
        if isinstance(role, str)
        else f"has a role that is a JSON {json_type(role)}"
    )


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _names(names: Any) -> str:
    return ", ".join(quote(name) for name in sorted(names)[:8]) or "none"
