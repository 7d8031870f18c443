"""The rows of an evaluation file: chat lines, or prompts, with any further fields for the graders.

    {"messages": [..., {"role": "assistant", "content": "the expected answer"}], "any": "other field"}
    {"prompt": "...", "completion": "the expected answer", ...}
    {"item": {one of these}}, as in OpenAI's evals

Graders see a row as `item`. `item.reference_answer` is the expected answer, unless the row has a field of this name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from app.domain.datasets.chat_template import content_text
from app.domain.datasets.examples import COMPLETION_KEYS, list_problems, string_problems, tool_list_problems
from app.domain.datasets.jsonl import Finding, quote_all, read_lines
from app.domain.datasets.messages import Problem
from app.domain.datasets.template_arguments import ChatTemplateArguments, given_arguments, row_argument_problems
from app.domain.error_text.json_text import as_json
from app.domain.evaluations.graders import (
    EvaluationSettings,
    Grader,
    JsonFields,
    LabelAccuracy,
    ScoreModel,
    templates_of,
)
from app.domain.evaluations.templates import (
    ITEM,
    SAMPLE,
    MissingField,
    TextRefused,
    compared_text,
    look_up,
    paths_of,
    render,
)

REFERENCE_ANSWER = "reference_answer"
MAX_NAMES, MAX_NAME_CHARACTERS = 100, 200  # of labels, and of fields of an expected JSON object
SAMPLE_SEED = 0


@dataclass(frozen=True)
class EvaluationRow:
    """One question. A chat line has `messages` (and `tools`), a plain line a `prompt`."""

    line: int
    item: dict[str, Any]
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    prompt: str | None = None
    size_bytes: int = 0  # of the line

    @property
    def chat_template_kwargs(self) -> ChatTemplateArguments | None:
        """The row's own arguments of the chat template, which win over those of the job."""
        return given_arguments(self.item) if self.messages else None

    @property
    def has_empty_reference(self) -> bool:
        reference = self.item.get(REFERENCE_ANSWER)
        return isinstance(reference, str) and not reference.strip()

    @property
    def question(self) -> str:
        """The prompt, or the last message of the conversation."""
        return self.prompt if self.prompt is not None else content_text(self.messages[-1])


def read_rows(file: BinaryIO, max_line_bytes: int) -> Iterator[EvaluationRow | Finding]:
    """Yield each row, or the findings of an invalid line."""
    for line in read_lines(file, max_line_bytes):
        if isinstance(line, Finding):
            yield line
            continue
        value = line.value
        wrapped = value.get("item")
        if isinstance(wrapped, dict) and not value.keys() & {"messages", "prompt"}:
            value = wrapped
        row = EvaluationRow(line.number, dict(value), size_bytes=line.size_bytes)
        if problems := list(_row_problems(value)):
            yield from (Finding(line.number, *problem) for problem in problems)
        elif "messages" in value:
            yield _chat_row(row)
        else:
            if "completion" in value:
                row.item.setdefault(REFERENCE_ANSWER, value["completion"].strip())
            yield replace(row, prompt=value["prompt"])


def selected_indices(row_count: int, max_rows: int) -> range | frozenset[int]:
    """The indices of all rows, or of a random selection: a file may be sorted, by label for example."""
    if row_count <= max_rows:
        return range(row_count)
    return frozenset(random.Random(SAMPLE_SEED).sample(range(row_count), max_rows))


def grader_findings(row: EvaluationRow, settings: EvaluationSettings) -> Iterator[Finding]:
    """What the graders and the reference need and the row does not have, and texts that are too large to compare."""
    for grader in settings.graders:
        name = f"for the grader {as_json(grader.name)}"
        try:
            _check_templates(row, grader)
        except MissingField as error:
            yield Finding(row.line, f"{name} {error}", "missing_field")
        except TextRefused as error:
            yield Finding(row.line, f"{name} {error}", "text_too_long")
        else:
            if problem := _reference_problem(row, grader):
                yield Finding(row.line, f"{name} the expected {problem}", "invalid_reference")
    field = settings.reference.field if settings.reference is not None else None
    if field is not None and not isinstance(row.item.get(field), str):
        yield Finding(row.line, f"{as_json(field)}, the field of recorded answers, must be a string", "missing_field")


def label_of(text: str, grader: LabelAccuracy) -> str:
    """A label as it is compared."""
    label = text.strip()
    return label.casefold() if grader.ignore_case else label


def parse_json_object(text: str) -> dict[str, Any] | None:
    """A text that is one JSON object; None for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _row_problems(value: Mapping[str, Any]) -> Iterator[Problem]:
    if "messages" not in value and "prompt" not in value:
        yield f'expected "messages" or "prompt"; found the keys {quote_all(value)}', "wrong_format"
    elif "messages" not in value:
        for key in sorted(value.keys() & COMPLETION_KEYS):
            yield from string_problems(value, key, "invalid_completion")
    else:
        found = list(list_problems(value["messages"], '"messages"'))
        found += [*tool_list_problems(value), *row_argument_problems(value)]
        yield from found
        roles = [message["role"] for message in value["messages"]] if not found else []
        if roles and roles[-1] == "assistant":
            roles.pop()
        if not found and (not roles or roles[-1] == "assistant"):
            text = "before the expected answer there must be a message that is not from the assistant"
            yield text, "invalid_messages"


def _chat_row(row: EvaluationRow) -> EvaluationRow:
    messages = list(row.item["messages"])
    if messages[-1]["role"] == "assistant" and (answer := messages.pop()).get("content") is not None:
        row.item.setdefault(REFERENCE_ANSWER, content_text(answer).strip())
    return replace(row, messages=tuple(messages), tools=tuple(row.item.get("tools") or ()))


def _check_templates(row: EvaluationRow, grader: Grader) -> None:
    """Raises MissingField, and TextRefused for a template that is the same text with every answer."""
    make_text = render if isinstance(grader, ScoreModel) else compared_text
    for text in templates_of(grader):
        paths = paths_of(text)
        for path in paths:
            if path.namespace == ITEM:
                look_up(path, {ITEM: row.item})
        if all(path.namespace != SAMPLE for path in paths):
            make_text(text, row.item, "")


def _reference_problem(row: EvaluationRow, grader: Grader) -> str | None:
    if isinstance(grader, JsonFields):
        return _json_problem(compared_text(grader.reference, row.item), grader)
    if isinstance(grader, LabelAccuracy):
        return _label_problem(label_of(compared_text(grader.reference, row.item), grader), grader)
    return None


def _json_problem(reference: str, grader: JsonFields) -> str | None:
    expected = parse_json_object(reference)
    if expected is None:
        return "answer must be a JSON object"
    if missing := [name for name in grader.fields or () if name not in expected]:
        return f"answer has no field {', '.join(map(as_json, missing))}"
    if grader.fields is None and (len(expected) > MAX_NAMES or any(map(_is_long, expected))):
        return (
            f"answer has {len(expected):,} fields; without a list of the compared `fields` at most {MAX_NAMES}, with "
            f"names of at most {MAX_NAME_CHARACTERS} characters, are allowed"
        )
    return None


def _label_problem(label: str, grader: LabelAccuracy) -> str | None:
    if not label:
        return "label is empty"
    if _is_long(label):
        return f"label has {len(label):,} characters; at most {MAX_NAME_CHARACTERS} are allowed; use a string_check"
    if grader.labels is not None and label not in {label_of(each, grader) for each in grader.labels}:
        return f"label {as_json(label)} is not among its labels"
    return None


def _is_long(name: str) -> bool:
    return len(name) > MAX_NAME_CHARACTERS
