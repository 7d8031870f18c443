"""Contradictions in a line of a valid format, and parts of it that would not be trained.

Refused since the second line rules (app.domain.jobs.spec.LineRules); jobs created under the first rules keep them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from app.domain.datasets.jsonl import Finding, LineError, json_type, parse_value, quote, quote_all

SHOWN_IDS = 8  # the first ones: sorting all for each finding would take quadratic time
EXAMPLE_ARGUMENTS = json.dumps('{"city": "Bern"}')


def conversation_findings(
    line: int, messages: Sequence[Mapping[str, Any]], where: str = "", before: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Finding]:
    """Problems between valid messages: fields that exclude each other, arguments of calls, ids of calls and results.

    `before` are the messages that precede these.
    """
    ids = {call["id"]: None for message in before for call in message.get("tool_calls") or ()}  # in order
    for number, message in enumerate(messages, 1):
        name = f"{where}message {number} ({message['role']})"
        if message["role"] == "assistant":
            yield from _exclusive_field_findings(line, name, message)
            yield from _call_findings(line, name, message, ids)
        elif message["role"] == "tool" and message["tool_call_id"] not in ids:
            text = (
                f"{name}: tool_call_id is {quote(message['tool_call_id'])}, but the calls before it have the ids "
                f"{quote_all(islice(ids, SHOWN_IDS))}; give the id of the call that it answers, or remove the message"
            )
            yield Finding(line, text, "unknown_tool_call_id")


def tool_findings(line: int, value: Mapping[str, Any], where: str = "") -> Iterator[Finding]:
    if value.get("tools") and value.get("functions"):
        text = 'has both "tools" and "functions", of which only "tools" is used; move every function into "tools"'
        yield Finding(line, text, "tools_and_functions")
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
                yield Finding(line, text, "invalid_tools")


def parallel_findings(line: int, value: Mapping[str, Any], where: str = "") -> Iterator[Finding]:
    found = value.get("parallel_tool_calls")
    if found is not None and not isinstance(found, bool):
        text = f"{where}parallel_tool_calls is a JSON {json_type(found)}; it must be true, false or null"
        yield Finding(line, text, "invalid_parallel_tool_calls")


# --- one message ------------------------------------------------------------------------------------------------------


def _exclusive_field_findings(line: int, name: str, message: Mapping[str, Any]) -> Iterator[Finding]:
    if message.get("tool_calls") and message.get("function_call"):
        text = (
            f"{name}: has both tool_calls and function_call, of which only one is trained; put every call into "
            "tool_calls and remove function_call"
        )
        yield Finding(line, text, "tool_calls_and_function_call")
    if message.get("refusal") and message.get("content") is not None:
        text = f"{name}: has both content and refusal, of which only one is trained; remove one of them"
        yield Finding(line, text, "content_and_refusal")


def _call_findings(line: int, name: str, message: Mapping[str, Any], ids: dict[str, None]) -> Iterator[Finding]:
    """Adds the ids of the calls to `ids`."""
    for number, call in enumerate(message.get("tool_calls") or ()):
        path = f"{name}: tool_calls[{number}]"
        if problem := _arguments_problem(call["function"]["arguments"]):
            yield Finding(line, f"{path}.function.arguments {problem}", "invalid_arguments")
        if call["id"] in ids:
            text = f"{path}.id is {quote(call['id'])}, which an earlier call of this line has; give each its own id"
            yield Finding(line, text, "duplicate_call_id")
        ids[call["id"]] = None
    if (call := message.get("function_call")) and (problem := _arguments_problem(call["arguments"])):
        yield Finding(line, f"{name}: function_call.arguments {problem}", "invalid_arguments")


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
