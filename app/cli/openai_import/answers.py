"""A reference set: each question of a file with the answer of a model at OpenAI, recorded once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from app.cli.errors import UsageError
from app.cli.openai_import.record import complete_lines
from app.cli.openai_import.source import OpenAISource, Refused
from app.cli.output.console import print_note
from app.domain.datasets.jsonl import MAX_LINE_BYTES, Finding
from app.domain.error_text.json_text import as_json
from app.domain.evaluations.rows import EvaluationRow, read_rows

ANSWER, MODEL, TOOL_CALLS = "recorded_answer", "recorded_model", "recorded_tool_calls"
NOTE_INTERVAL = 20  # answers


def record_answers(source: OpenAISource, model: str, prompts: bytes, golden: Path) -> tuple[int, list[str]]:
    """Append a line with the model's answer for each question that `golden` does not have.

    The lines are those of `prompts` with two more fields; of equal prompts only the first one is sent. Returns the
    number of new lines, and the prompts that OpenAI refused. Raises UsageError for an invalid line of `prompts` or
    `golden`, and errors of OpenAI that concern more than one question; the answers up to then are in `golden`.
    """
    rows: dict[str, EvaluationRow] = {}
    for row in _read(prompts, "prompts"):
        rows.setdefault(_key(row), row)
    done = set(_recorded(golden, model))
    waiting = [row for key, row in rows.items() if key not in done]
    refused = []
    with golden.open("a", encoding="utf-8") as out:
        for number, row in enumerate(waiting, len(rows) - len(waiting)):
            if number % NOTE_INTERVAL == 0:
                print_note(f"{number} of {len(rows)} answers")
            try:
                line = _answered(source, model, row)
            except Refused as error:
                refused.append(f"line {row.line}: {error}")
                continue
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
    return len(waiting) - len(refused), refused


def _answered(source: OpenAISource, model: str, row: EvaluationRow) -> dict[str, Any]:
    messages = row.messages or ({"role": "user", "content": row.prompt},)
    prompt = [{key: value for key, value in each.items() if key != "weight"} for each in messages]
    answer = source.answer(model, prompt, row.tools)
    line = {**row.item, ANSWER: (answer.get("content") or answer.get("refusal") or "").strip(), MODEL: model}
    return line | ({TOOL_CALLS: answer["tool_calls"]} if answer.get("tool_calls") else {})


def _recorded(golden: Path, model: str) -> Iterator[str]:
    """The keys of the questions that the file has. Raises UsageError for a line with no answer of `model`."""
    for row in _read(complete_lines(golden), str(golden)):
        if row.item.get(MODEL) != model:
            raise UsageError(
                f"{golden} has answers of one model, and line {row.line} has {MODEL} {as_json(row.item.get(MODEL))}, "
                f"not {as_json(model)}. Give --record a file for each model."
            )
        yield _key(row)


def _read(content: bytes, name: str) -> Iterator[EvaluationRow]:
    for row in read_rows(BytesIO(content), MAX_LINE_BYTES):
        if isinstance(row, Finding):
            raise UsageError(f"{name}: {row}.")
        yield row


def _key(row: EvaluationRow) -> str:
    return json.dumps([row.messages, row.tools, row.prompt], sort_keys=True)
