"""Read an evaluation file: check every line, select the rows, and count the tokens of their prompts."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.domain.datasets.jsonl import Finding, format_findings
from app.domain.datasets.render import Renderer, TemplateRefused
from app.domain.evaluations.graders import EvaluationSettings, JsonFields, LabelAccuracy
from app.domain.evaluations.rows import (
    MAX_NAMES,
    EvaluationRow,
    grader_findings,
    label_of,
    parse_json_object,
    read_rows,
    selected_indices,
)
from app.domain.evaluations.templates import compared_text
from app.system.limited_rendering import read_in_process

MAX_FINDINGS = 10
MAX_ROWS_BYTES = 128 << 20  # of the selected rows, which are held in memory


class InvalidEvaluationFile(ValueError):
    """The message names the lines."""


@dataclass(frozen=True)
class EvaluationInputs:
    """The selected rows, each with the tokens of its prompt."""

    rows: list[EvaluationRow]
    prompts: Sequence[Sequence[int]]
    rows_in_file: int

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


def read_checked_inputs(
    open_file: Callable[[], BinaryIO],
    settings: EvaluationSettings,
    model_directory: Path,
    context_length: int,
    max_line_bytes: int,
    check: Callable[[], None],
) -> EvaluationInputs:
    """Read the file in a process with limits, as the base model's chat template runs there.

    `check` is called meanwhile, to raise an error that ends the work. Raises InvalidEvaluationFile,
    UnreadableTokenizer, UnusableTemplate, OSError.
    """
    with open_file() as file, open_file() as again:
        inputs: EvaluationInputs = read_in_process(
            model_directory,
            read_inputs,
            settings,
            context_length,
            max_line_bytes,
            files=[file, again],
            max_line_bytes=max_line_bytes,
            check=check,
        )
    return inputs


def read_inputs(
    renderer: Renderer,
    settings: EvaluationSettings,
    context_length: int,
    max_line_bytes: int,
    file: BinaryIO,
    again: BinaryIO,
) -> EvaluationInputs:
    """Read the file twice, as it may be larger than memory: for its problems, then for the selected rows.

    Raises InvalidEvaluationFile, OSError.
    """
    count = _check_lines(file, settings, max_line_bytes)
    selected = selected_indices(count, settings.max_rows)
    rows: list[EvaluationRow] = []
    prompts: list[array[int]] = []
    findings: list[Finding] = []
    size_bytes = 0
    for index, row in enumerate(read_rows(again, max_line_bytes)):
        if index not in selected or isinstance(row, Finding):
            continue
        size_bytes += row.size_bytes
        if size_bytes > MAX_ROWS_BYTES:
            raise InvalidEvaluationFile(
                f"Line {row.line}: the evaluated rows have more than {MAX_ROWS_BYTES:,} bytes together; set a lower "
                "max_rows, or leave out fields that no grader needs."
            )
        rows.append(row)
        prompts.append(array("I", _prompt(row, renderer, context_length - settings.max_new_tokens, findings)))
    _check_names(rows, settings)
    _raise_if(findings)
    return EvaluationInputs(rows, prompts, count)


def _check_lines(file: BinaryIO, settings: EvaluationSettings, max_line_bytes: int) -> int:
    """The number of rows. Raises InvalidEvaluationFile."""
    findings: list[Finding] = []
    problems = count = 0
    for row in read_rows(file, max_line_bytes):
        count += 1
        for finding in _findings(row, settings):
            problems += 1
            if len(findings) < MAX_FINDINGS:
                findings.append(finding)
    if not count:
        raise InvalidEvaluationFile("The evaluation file has no rows.")
    _raise_if(findings, problems)
    return count


def _findings(row: EvaluationRow | Finding, settings: EvaluationSettings) -> Iterator[Finding]:
    if isinstance(row, Finding):
        yield row
    else:
        yield from grader_findings(row, settings)


def _check_names(rows: list[EvaluationRow], settings: EvaluationSettings) -> None:
    """Raises InvalidEvaluationFile if the summary of a grader would name more than MAX_NAMES labels or fields."""
    for grader in settings.graders:
        names: set[str] = set()
        if isinstance(grader, LabelAccuracy) and grader.labels is None:
            names.update(label_of(compared_text(grader.reference, row.item), grader) for row in rows)
            what, remedy = "labels", "Use a string_check instead"
        elif isinstance(grader, JsonFields) and grader.fields is None:
            names.update(*(parse_json_object(compared_text(grader.reference, row.item)) or () for row in rows))
            what, remedy = "fields", "Name the compared ones in `fields`"
        if len(names) > MAX_NAMES:
            raise InvalidEvaluationFile(
                f"The grader {grader.name} found {len(names)} different {what} in the file; at most {MAX_NAMES} are "
                f"allowed. {remedy}."
            )


def _prompt(row: EvaluationRow, renderer: Renderer, max_tokens: int, findings: list[Finding]) -> list[int]:
    """The tokens of a prompt; empty after a finding was added."""
    try:
        if row.prompt is not None:
            tokens = renderer.encode_plain(row.prompt)
        else:
            messages = renderer.normalized(row.messages)
            tokens = renderer.encode(renderer.text(messages, row.tools, prompt=True))
            if len(tokens) <= max_tokens:
                renderer.check_prompt(messages, row.tools)
    except TemplateRefused as error:
        findings.append(Finding(row.line, str(error), "template_refused"))
        return []
    if not tokens:
        findings.append(Finding(row.line, "the prompt is empty", "empty_prompt"))
    if len(tokens) > max_tokens:
        text = (
            f"the prompt has {len(tokens):,} tokens; with max_new_tokens at most {max(0, max_tokens):,} fit into the "
            "context of the base model"
        )
        findings.append(Finding(row.line, text, "prompt_too_long"))
    return tokens


def _raise_if(findings: list[Finding], problems: int | None = None) -> None:
    if not findings:
        return
    total = len(findings) if problems is None else problems
    text = format_findings(findings[:MAX_FINDINGS])
    if total > MAX_FINDINGS:
        text += f" These are the first {MAX_FINDINGS} of {total} problems."
    raise InvalidEvaluationFile(text)
