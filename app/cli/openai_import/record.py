"""A reference set: each question of a file with the answer of a model at OpenAI, recorded once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from app.cli.errors import UsageError
from app.cli.openai_import.source import OpenAISource
from app.domain.datasets.jsonl import MAX_LINE_BYTES, Finding
from app.domain.evaluations.rows import EvaluationRow, read_rows

ANSWER, MODEL = "recorded_answer", "recorded_model"


def record(source: OpenAISource, model: str, prompts: bytes, golden: Path, on_row: Callable[[int, int], None]) -> int:
    """Append a line with the model's answer for each question that `golden` does not have; the number of new lines.

    The lines are those of `prompts` with two more fields. Raises UsageError for an invalid line of `prompts` or
    `golden`, and errors of OpenAI; the answers up to then are in `golden`.
    """
    rows = list(_read(prompts, "prompts"))
    done = {_key(row) for row in _read(_complete_lines(golden), str(golden))} if golden.exists() else set()
    waiting = [row for row in rows if _key(row) not in done]
    with golden.open("a", encoding="utf-8") as out:
        for number, row in enumerate(waiting):
            on_row(len(rows) - len(waiting) + number, len(rows))
            messages = row.messages or ({"role": "user", "content": row.prompt},)
            prompt = [{key: value for key, value in each.items() if key != "weight"} for each in messages]
            answer = source.answer(model, prompt, row.tools)
            line: dict[str, Any] = {**row.item, ANSWER: (answer.get("content") or "").strip(), MODEL: model}
            if answer.get("tool_calls"):
                line["recorded_tool_calls"] = answer["tool_calls"]
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
    return len(waiting)


def _read(content: bytes, name: str) -> Iterator[EvaluationRow]:
    for row in read_rows(BytesIO(content), MAX_LINE_BYTES):
        if isinstance(row, Finding):
            raise UsageError(f"{name}: {row}.")
        yield row


def _complete_lines(path: Path) -> bytes:
    """The lines of a file without a last one that was interrupted, which is removed from the file."""
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        path.write_bytes(complete)
    return complete


def _key(row: EvaluationRow) -> str:
    return json.dumps([row.messages, row.tools, row.prompt], sort_keys=True)
