"""What a data set is like once it is rendered and tokenized: counts, and the first lines of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from app.domain.datasets.chat_template import TemplateRefused
from app.domain.datasets.documents import Document, by_example, fit, is_cut
from app.domain.datasets.examples import MAX_FINDINGS, Example, read_examples
from app.domain.datasets.jsonl import Finding
from app.domain.datasets.render import Renderer
from app.domain.datasets.warnings import DatasetWarning, Lines, SeenRows, codes_of, digest_of, in_words
from app.domain.jobs.spec import LINE_RULES, LineRules, Method
from app.domain.planning.packing import SequenceLengths

ENOUGH_FINDINGS = 100  # a file with so many is not read to its end


def nothing_to_learn(method: Method, context_length: int) -> str:
    """What is wrong with a file of which nothing is learned within so many tokens, and what to change."""
    raise_it = "or raise hyperparameters.context_length"
    if method == "dpo":
        return (
            f"No pair has two different answers to learn from within {context_length:,} tokens. Let the two outputs of "
            f"a pair differ, shorten the prompts, {raise_it}."
        )
    return (
        f"No example has a token to learn within {context_length:,} tokens: every answer is empty, has weight 0, or "
        f"begins after the cut. Give an answer weight 1, shorten the prompts, {raise_it}."
    )


def too_few_examples(noun: str, examples: int, least: int) -> str:
    """OpenAI's words for a training (or validation) file that is too short."""
    return f"{noun.capitalize()} file has {examples} example(s), but must have at least {least} examples"


@dataclass
class Report:
    examples: int = 0
    tokens: int = 0  # after the cut: what one epoch trains on
    labelled_tokens: int = 0
    cut: Lines = field(default_factory=Lines)
    empty: Lines = field(default_factory=Lines)  # no token to learn: masked out, or beyond the cut
    masked: Lines = field(default_factory=Lines)  # of those, the ones that had none before the cut either
    lengths: SequenceLengths = field(default_factory=SequenceLengths)
    warned: dict[str, Lines] = field(default_factory=dict)  # by the code of the warning
    different_rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    finding_count: int = 0
    bad_lines: int = 0  # with at least one finding
    last_bad_line: int = 0
    most_findings: int = MAX_FINDINGS  # so many are kept, the others counted

    def find(self, finding: Finding) -> None:
        """Findings come in the order of their lines."""
        self.finding_count += 1
        self.bad_lines += finding.line != self.last_bad_line
        self.last_bad_line = finding.line
        if len(self.findings) < self.most_findings:
            self.findings.append(finding)

    def warn(self, code: str, line: int) -> None:
        self.warned.setdefault(code, Lines()).add(line)

    def warnings(self, method: Method, context_length: int) -> list[DatasetWarning]:
        found = {"cut": self.cut, "empty": self.empty} | self.warned
        return in_words(found, method, context_length, self.different_rows)

    @property
    def finding_count_text(self) -> str:
        return f"at least {self.finding_count}" if self.finding_count >= ENOUGH_FINDINGS else str(self.finding_count)

    def counts(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "labelled_tokens": self.labelled_tokens,
            "cut": self.cut.count,
            "empty": self.empty.count,
        }

    def remarks(self) -> dict[str, Any]:
        return {
            "cut": self.cut.count,
            "cut_lines": self.cut.first,
            "empty": self.empty.count,
            "empty_lines": self.empty.first,
        }


def examine(
    file: BinaryIO,
    renderer: Renderer,
    context_length: int,
    max_line_bytes: int,
    between_lines: Callable[[], None],
    method: Method = "supervised",
    rules: LineRules = LINE_RULES,
    rows: SeenRows | None = None,
    training_rows: SeenRows | None = None,
) -> Report:
    """Read a whole file as the method's trainer will. `between_lines` may raise to end it early.

    `rows` is filled with the rows of this file; `training_rows`, of a validation file's training file, is compared
    with them.
    """
    report, rows = Report(), SeenRows() if rows is None else rows
    for item in read_examples(file, max_line_bytes, method, rules):
        between_lines()
        if isinstance(item, Finding):
            report.find(item)
        else:
            report.examples += 1
            compare_row(item, report, rows, training_rows)
            for code in codes_of(item, renderer):
                report.warn(code, item.line)
            examine_example(item, renderer, context_length, report)
        if report.finding_count >= ENOUGH_FINDINGS:
            break
    return report


def compare_row(example: Example, report: Report, rows: SeenRows, training_rows: SeenRows | None) -> None:
    digest = digest_of(example)
    if rows.add(digest, example.line) is not None:
        report.warn("duplicate_rows", example.line)
        return
    report.different_rows += 1
    if training_rows is not None and digest in training_rows.lines:
        report.warn("overlap", example.line)


@dataclass(frozen=True)
class Rendered:
    """An example as tokens: whole, and what of it is trained."""

    documents: list[Document]
    kept: list[Document]


def examine_example(example: Example, renderer: Renderer, context_length: int, report: Report) -> Rendered | None:
    """Add one example to the report. None for one that the template refuses, which is a finding."""
    try:
        documents = renderer.documents(example)
    except TemplateRefused as error:
        report.find(Finding(example.line, str(error), "template_refused"))
        return None
    if any(is_cut(document, context_length) for document in documents):
        report.cut.add(example.line)
    kept = fit(documents, context_length)  # as the trainer keeps them
    if not kept:
        report.empty.add(example.line)
        if not any(document.labelled_count for document in documents):
            report.masked.add(example.line)
        return Rendered(documents, kept)
    for trained in by_example(kept):
        report.lengths.add(list(map(len, trained)), is_pair=bool(kept[0].side))
    report.tokens += sum(len(document) for document in kept)
    report.labelled_tokens += sum(document.labelled_count for document in kept)
    return Rendered(documents, kept)
