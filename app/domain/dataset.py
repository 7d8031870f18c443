"""The JSONL check, line by line: the same rules at upload, in `validating_files` and in the trainer.

Python's `json` takes NaN, duplicate keys and lone surrogates, and `str.splitlines()` cuts valid lines at U+2028; so
bytes are split on b"\\n" only, decoded strictly, and parsed by a decoder that refuses what PostgreSQL would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_LINE_BYTES = 4 << 20
MAX_DEPTH = 64
MAX_FINDINGS = 10
MIN_TRAINING_EXAMPLES = 10
UTF8_BOM = b"\xef\xbb\xbf"
INT64 = 1 << 63


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one line, counted from 1; the line's content is never quoted whole."""

    line: int
    message: str
    code: str = "invalid_line"

    def __str__(self) -> str:
        return f"Line {self.line}: {self.message}"


@dataclass(frozen=True)
class Line:
    number: int
    value: dict[str, Any]


class LineError(ValueError):
    """Why one line is not acceptable JSON."""


def read_lines(file: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Line | Finding]:
    """Yield each non-blank line as a JSON object, or as the finding that says what is wrong with it.

    Reads at most `max_line_bytes` + 1 at a time, so a 100 MB line costs no more memory than a legal one.
    """
    number = 0
    while chunk := file.readline(max_line_bytes + 1):
        number += 1
        if len(chunk) > max_line_bytes and not chunk.endswith(b"\n"):
            _skip_rest_of_line(file)
            yield Finding(
                number,
                f"longer than {max_line_bytes:,} bytes, which is the limit for one line",
                "line_too_long",
            )
            continue
        if number == 1:
            chunk = chunk.removeprefix(UTF8_BOM)
        line = chunk.removesuffix(b"\n").removesuffix(b"\r")
        if line.strip():
            yield _parse_line(number, line)


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse one line strictly.

    Raises LineError for invalid UTF-8, a BOM, NUL, a lone surrogate, NaN or infinity, a duplicate key, numbers beyond
    int64 or double, nesting deeper than 64, or a top level that is not an object.
    """
    text = _decode(line)
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_int64,
            object_pairs_hook=_unique,
        )
    except RecursionError as error:
        raise LineError(f"nested deeper than {MAX_DEPTH} levels") from error
    except json.JSONDecodeError as error:
        raise LineError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(value, dict):
        raise LineError(f'a JSON {_json_type(value)}, but every line must be a JSON object like {{"messages": [...]}}')
    _check_tree(value, depth=1)
    return value


# --- what an example may be -------------------------------------------------------------------------------------------


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
            f'the last message is from "{messages[-1]["role"]}", but it must be from "assistant": it is what is learned',
            "last_message_not_assistant",
        )


def _message_findings(line: int, number: int, message: Any) -> Iterator[Finding]:
    if not isinstance(message, dict):
        yield Finding(line, f"message {number} is a JSON {_json_type(message)}, not an object", "invalid_message")
        return
    role = message.get("role")
    if not isinstance(role, str) or role not in MESSAGE_BY_ROLE:
        seen = "has no role" if role is None else f"has the unknown role {_quote(role)}"
        yield Finding(line, f"message {number} {seen}; allowed are {_names(MESSAGE_BY_ROLE)}", "invalid_role")
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
            seen = "is missing" if key not in value else f"is a JSON {_json_type(value[key])}"
            yield Finding(line.number, f'"{key}" {seen}, but it must be a string', "invalid_completion")


def _chat_example(line: Line) -> Example:
    tools = line.value.get("tools") or [
        {"type": "function", "function": function} for function in line.value.get("functions") or ()
    ]
    return Example(line.number, messages=tuple(line.value["messages"]), tools=tuple(tools))


# --- strict JSON ------------------------------------------------------------------------------------------------------


def _completion_example(line: Line) -> Example:
    return Example(line.number, prompt=line.value["prompt"], completion=line.value["completion"])


def _parse_line(number: int, line: bytes) -> Line | Finding:
    try:
        return Line(number, parse_object(line))
    except LineError as error:
        return Finding(number, str(error))


def _decode(line: bytes) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError(f"not valid UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}") from error
    if text.startswith("\ufeff"):
        raise LineError("a byte order mark, which is accepted only at the very start of the file")
    return text


def _refuse_constant(name: str) -> Any:
    raise LineError(f"{name} is not JSON; use a number or null")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise LineError(f"the number {text[:40]} is too large for a double")
    return value


def _int64(text: str) -> int:
    if len(text) > 20 or not -INT64 <= int(text) < INT64:
        raise LineError(f"the number {text[:40]} is outside the 64-bit integers")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise LineError(f"the key {_quote(twice)} stands twice in one object")
    return value


def _check_tree(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise LineError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, list):
        for item in value:
            _check_tree(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_tree(item, depth + 1)


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise LineError("a NUL character (\\u0000) inside a string")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise LineError("a lone surrogate (\\ud800 to \\udfff without its partner) inside a string")


def _skip_rest_of_line(file: BinaryIO) -> None:
    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass


# --- words for messages -----------------------------------------------------------------------------------------------


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"contains an extra key {_quote(where)}"
    text = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _names(names: Any) -> str:
    return ", ".join(_quote(name) for name in sorted(names)[:8]) or "none"


def _quote(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else text[:40] + "…")
