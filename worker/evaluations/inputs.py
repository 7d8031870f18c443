"""Read an evaluation file: check every line, select the rows, and count the tokens of their prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from app.domain.datasets.jsonl import Finding, format_findings
from app.domain.datasets.render import Renderer, TemplateRefused
from app.domain.evaluations.graders import EvaluationSettings, LabelAccuracy
from app.domain.evaluations.rows import EvaluationRow, grader_findings, label_of, read_rows, selected_indices
from app.domain.evaluations.templates import render

MAX_FINDINGS = 10
MAX_LABELS = 100
CHECK_INTERVAL = 1_000  # lines between two calls of `check`


class InvalidEvaluationFile(ValueError):
    """The message names the lines."""


@dataclass(frozen=True)
class EvaluationInputs:
    """The selected rows, each with the tokens of its prompt."""

    rows: list[EvaluationRow]
    prompts: list[list[int]]
    rows_in_file: int

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


def read_inputs(
    open_file: Callable[[], BinaryIO],
    settings: EvaluationSettings,
    renderer: Renderer,
    context_length: int,
    max_line_bytes: int,
    check: Callable[[], None],
) -> EvaluationInputs:
    """Read the file twice, as it may be larger than memory: for its problems, then for the selected rows.

    `check` is called now and then, to raise an error that ends the work. Raises InvalidEvaluationFile, OSError.
    """
    with open_file() as file:
        count = _check_lines(file, settings, max_line_bytes, check)
    selected = selected_indices(count, settings.max_rows)
    with open_file() as file:
        rows = [row for index, row in enumerate(read_rows(file, max_line_bytes)) if index in selected]
    checked = [row for row in rows if isinstance(row, EvaluationRow)]
    _check_labels(checked, settings)
    findings: list[Finding] = []
    prompts = [_prompt(row, renderer, context_length - settings.max_new_tokens, findings) for row in checked]
    _raise_if(findings)
    return EvaluationInputs(checked, prompts, count)


def _check_lines(file: BinaryIO, settings: EvaluationSettings, max_line_bytes: int, check: Callable[[], None]) -> int:
    """The number of rows. Raises InvalidEvaluationFile."""
    findings: list[Finding] = []
    problems = count = 0
    for number, row in enumerate(read_rows(file, max_line_bytes)):
        if number % CHECK_INTERVAL == 0:
            check()
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


def _check_labels(rows: list[EvaluationRow], settings: EvaluationSettings) -> None:
    for grader in settings.graders:
        if isinstance(grader, LabelAccuracy) and grader.labels is None:
            labels = {label_of(render(grader.reference, row.item, ""), grader) for row in rows}
            if len(labels) > MAX_LABELS:
                raise InvalidEvaluationFile(
                    f"The grader {grader.name} found {len(labels)} different labels in the file; at most {MAX_LABELS} "
                    "are allowed. Use a string_check instead."
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
