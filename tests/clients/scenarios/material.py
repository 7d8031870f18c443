"""Datasets of the scenarios, as bytes, and what their jobs are asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

LORA = {"r": 8, "alpha": 16, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
QUANTIZATION = {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
WORDS = ("red", "green", "blue", "amber", "violet", "white")


@dataclass(frozen=True)
class Created:
    """Ids of what was queued at the start."""

    main: str  # ten examples, a validation file, hyperparameters in extra_body, everything else "auto"
    plain: str  # nothing but a model and a file, and a bound on the steps
    dpo: str
    masked: str  # tools, and one example of weight 0


def lines(examples: list[Any]) -> bytes:
    return b"".join(json.dumps(example).encode() + b"\n" for example in examples)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def chats(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Learnable: the answer repeats the last word of the question."""
    found = []
    for number in range(start, start + count):
        word = WORDS[number % len(WORDS)]
        found.append({"messages": [user(f"{number} {word}"), assistant(word)]})
    return found


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "input": {"messages": [user(f"say {number}")]},
            "preferred_output": [assistant(f"it is {number}")],
            "non_preferred_output": [assistant("no idea")],
        }
        for number in range(count)
    ]


def with_tools(count: int) -> list[dict[str, Any]]:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
    return [
        {
            "messages": [
                user(f"look at {number}"),
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": WORDS[number % len(WORDS)]},
                assistant(WORDS[number % len(WORDS)]),
            ],
            "tools": [tool],
        }
        for number in range(count)
    ]


def silent(number: int) -> dict[str, Any]:
    """An example whose only answer has weight 0."""
    return {"messages": [user(f"silent {number}"), assistant("not learned", weight=0)]}
