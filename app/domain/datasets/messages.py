"""The findings of a message by itself, by the schema of its role, and of valid messages that contradict each other.

Unknown keys are findings, so that a typo is not ignored. Contradictions are refused since the second line rules
(app.domain.jobs.spec.LineRules); jobs created under the first rules keep them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from app.domain.datasets.jsonl import LineError, json_type, parse_value, quote_all
from app.domain.error_text.json_text import quoted
from app.domain.error_text.validation_text import error_sentence

OR_TEXT_PARTS = (
    ' or a list of parts such as {"type": "text", "text": "..."}, as trainings, evaluations and trial answers '
    "read only text"
)
MAX_KEYS = 300  # of an object with known keys
REASONING_KEYS = ("reasoning_content", "thinking")  # DeepSeek, Qwen and vLLM; gpt-oss and Ollama


def check_key_count(value: Any) -> Any:
    """Raise ValueError for an object with more than MAX_KEYS: pydantic makes an error for each invalid one."""
    if isinstance(value, dict) and len(value) > MAX_KEYS:
        raise ValueError(f"must have at most {MAX_KEYS} keys")
    return value


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    _check_key_count = model_validator(mode="before")(check_key_count)


class TextPart(StrictModel):
    type: Literal["text"]
    text: str


class FunctionCall(StrictModel):
    name: str
    arguments: str


class ToolCall(StrictModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


Content = str | Annotated[list[TextPart], Field(fail_fast=True)]


class PromptMessage(StrictModel):
    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None


class AssistantMessage(StrictModel):
    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    weight: Literal[0, 1] | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, fail_fast=True)] | None = None
    function_call: FunctionCall | None = None
    # Trained if the base model's template prints it (datasets.render checks that); otherwise the line is refused.
    reasoning_content: str | None = None
    thinking: str | None = None
    # OpenAI's client writes these into each answer; text models do not train on them.
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _has_content_or_calls(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls and self.function_call is None:
            raise ValueError("an assistant message needs content or tool_calls")
        return self


class ToolMessage(StrictModel):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


class FunctionMessage(StrictModel):
    role: Literal["function"]
    name: str
    content: str | None


MESSAGE_BY_ROLE: dict[str, type[StrictModel]] = {
    "system": PromptMessage,
    "developer": PromptMessage,
    "user": PromptMessage,
    "assistant": AssistantMessage,
    "tool": ToolMessage,
    "function": FunctionMessage,
}
Problem = tuple[str, str]  # the message and the code of a finding


def message_problems(messages: Sequence[Any], where: str = "") -> Iterator[Problem]:
    """The problems of each message by itself; `where` names their list in the line."""
    for number, message in enumerate(messages, 1):
        yield from _message_problems(f"{where}message {number}", message)


def _message_problems(name: str, message: Any) -> Iterator[Problem]:
    if not isinstance(message, dict):
        yield f"{name} is a JSON {json_type(message)}, not an object", "invalid_message"
        return
    role = message.get("role")
    if not isinstance(role, str) or role not in MESSAGE_BY_ROLE:
        yield f"{name} {_role_problem(role)}; allowed are {quote_all(MESSAGE_BY_ROLE)}", "invalid_role"
        return
    try:
        MESSAGE_BY_ROLE[role].model_validate(message)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        for text in dict.fromkeys(_problem_text(problem, message) for problem in problems):
            yield f"{name} ({role}): {text}", "invalid_message"


def _problem_text(problem: ErrorDetails, message: Mapping[str, Any]) -> str:
    path, kind = _path(problem["loc"]), problem["type"]
    if problem["loc"][0:1] == ("content",) and path != "content":
        return f"content {_content_problem(message['content'])}; it must be a string{OR_TEXT_PARTS}"
    if kind == "extra_forbidden":
        allowed = MESSAGE_BY_ROLE[message["role"]].model_fields
        more = f"; allowed are {quote_all(allowed, limit=len(allowed))}" if len(problem["loc"]) == 1 else ""
        return f"contains an extra key {quoted(path)}{more}"
    if kind == "missing":
        return f"{path} is missing"
    if kind == "too_short" and path == "tool_calls":
        return "tool_calls must be a list with at least one item, or null"
    return f"{path} {error_sentence(problem)}" if path else problem["msg"].removeprefix("Value error, ")


def _path(steps: Iterable[int | str]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def _content_problem(content: Any) -> str:
    if not isinstance(content, list):
        return f"is a JSON {json_type(content)}"
    part_types = (part.get("type") for part in content if isinstance(part, dict))
    other = next((kind for kind in part_types if isinstance(kind, str) and kind != "text"), None)
    return f"has a part of the type {quoted(other)}" if other else "has an invalid part"


def _role_problem(role: Any) -> str:
    if role is None:
        return "has no role"
    if isinstance(role, str):
        return f"has the unknown role {quoted(role)}"
    return f"has a role that is a JSON {json_type(role)}"


SHOWN_IDS = 8  # the first ones: sorting all for each finding would take quadratic time
EXAMPLE_ARGUMENTS = json.dumps('{"city": "Bern"}')


def conversation_problems(
    messages: Sequence[Mapping[str, Any]], where: str = "", before: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Problem]:
    """Problems between valid messages: fields that exclude each other, arguments of calls, ids of calls and results.

    `before` are the messages that precede these.
    """
    ids = {call["id"]: None for message in before for call in message.get("tool_calls") or ()}  # in order
    for number, message in enumerate(messages, 1):
        name = f"{where}message {number} ({message['role']})"
        if message["role"] == "assistant":
            yield from _exclusive_field_problems(name, message)
            yield from _call_problems(name, message, ids)
        elif message["role"] == "tool" and message["tool_call_id"] not in ids:
            text = (
                f"{name}: tool_call_id is {quoted(message['tool_call_id'])}, but the calls before it have the ids "
                f"{quote_all(islice(ids, SHOWN_IDS))}; give the id of the call that it answers, or remove the message"
            )
            yield text, "unknown_tool_call_id"


def tool_problems(value: Mapping[str, Any], where: str = "") -> Iterator[Problem]:
    if value.get("tools") and value.get("functions"):
        text = 'has both "tools" and "functions", of which only "tools" is used; move every function into "tools"'
        yield text, "tools_and_functions"
    for key, path, shown in (
        ("tools", ".function.name", '{"type": "function", "function": {"name": "...", "parameters": {...}}}'),
        ("functions", ".name", '{"name": "...", "parameters": {...}}'),
    ):
        for number, tool in enumerate(value.get(key) or ()):
            function = tool.get("function") if key == "tools" else tool
            name = function.get("name") if isinstance(function, dict) else None
            if not isinstance(name, str) or not name:
                text = (
                    f"{where}{key}[{number}]{path} must be a string that is not empty; found an object with the keys "
                    f"{quote_all(tool)}; write it as {shown}"
                )
                yield text, "invalid_tools"


def parallel_problems(value: Mapping[str, Any], where: str = "") -> Iterator[Problem]:
    found = value.get("parallel_tool_calls")
    if found is not None and not isinstance(found, bool):
        text = f"{where}parallel_tool_calls is a JSON {json_type(found)}; it must be true, false or null"
        yield text, "invalid_parallel_tool_calls"


# --- one message ------------------------------------------------------------------------------------------------------


def _exclusive_field_problems(name: str, message: Mapping[str, Any]) -> Iterator[Problem]:
    if message.get("tool_calls") and message.get("function_call"):
        text = (
            f"{name}: has both tool_calls and function_call, of which only one is trained; put every call into "
            "tool_calls and remove function_call"
        )
        yield text, "tool_calls_and_function_call"
    if message.get("refusal") and message.get("content") is not None:
        text = f"{name}: has both content and refusal, of which only one is trained; remove one of them"
        yield text, "content_and_refusal"


def _call_problems(name: str, message: Mapping[str, Any], ids: dict[str, None]) -> Iterator[Problem]:
    """Adds the ids of the calls to `ids`."""
    for number, call in enumerate(message.get("tool_calls") or ()):
        path = f"{name}: tool_calls[{number}]"
        if problem := _arguments_problem(call["function"]["arguments"]):
            yield f"{path}.function.arguments {problem}", "invalid_arguments"
        if call["id"] in ids:
            text = f"{path}.id is {quoted(call['id'])}, which an earlier call of this line has; give each its own id"
            yield text, "duplicate_call_id"
        ids[call["id"]] = None
    if (call := message.get("function_call")) and (problem := _arguments_problem(call["arguments"])):
        yield f"{name}: function_call.arguments {problem}", "invalid_arguments"


def _arguments_problem(arguments: str) -> str | None:
    try:
        value = parse_value(arguments.encode())
    except LineError as error:
        seen = str(error)
    else:
        if isinstance(value, dict):
            return None
        seen = f"a JSON {json_type(value)}"
    return f"must be a JSON object in a string, such as {EXAMPLE_ARGUMENTS}; found: {seen}"
