"""The report of a rendered and tokenized dataset: counts, findings, and the first lines of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from app.domain.datasets.chat_template import TemplateRefused
from app.domain.datasets.documents import PREFERRED, REJECTED, Document, exceeds_context, split_examples, truncate
from app.domain.datasets.examples import MAX_FINDINGS, Example, read_examples
from app.domain.datasets.jsonl import Finding, format_findings
from app.domain.datasets.render import RenderedLine, Renderer
from app.domain.datasets.warnings import (
    DatasetWarning,
    LineCount,
    RowIndex,
    build_warnings,
    label_warnings,
    row_digest,
    warning_codes,
)
from app.domain.jobs.spec import DataParameters
from app.domain.methods import METHODS, MethodName
from app.domain.planning.packing import SequenceLengths

LABELS = {PREFERRED: "desirable", REJECTED: "undesirable"}
MAX_FINDINGS_READ = 100  # reading stops after so many


def no_trainable_tokens_message(method: MethodName, context_length: int) -> str:
    """The error message for a file without a token to train on within `context_length` tokens."""
    problem = METHODS[method].nothing_trainable.format(context_length=context_length)
    return f"{problem}, shorten the prompts, or raise hyperparameters.context_length."


def too_few_examples_message(noun: str, examples: int, min_examples: int) -> str:
    """OpenAI's message for a training or validation file with too few examples."""
    return f"{noun.capitalize()} file has {examples} example(s), but must have at least {min_examples} examples"


@dataclass
class DatasetReport:
    examples: int = 0
    tokens: int = 0  # of one epoch, after truncation
    labelled_tokens: int = 0
    cut: LineCount = field(default_factory=LineCount)
    empty: LineCount = field(default_factory=LineCount)  # without a labelled token: masked, or truncated
    masked: LineCount = field(default_factory=LineCount)  # those of `empty` without a labelled token before truncation
    lengths: SequenceLengths = field(default_factory=SequenceLengths)
    warning_lines: dict[str, LineCount] = field(default_factory=dict)  # by the code of the warning
    labels: dict[str, LineCount] = field(default_factory=lambda: {name: LineCount() for name in LABELS.values()})
    different_rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    finding_count: int = 0
    bad_lines: int = 0  # lines with at least one finding
    last_bad_line: int = 0
    max_findings: int = MAX_FINDINGS  # so many are kept, the others are only counted

    def add_finding(self, finding: Finding) -> None:
        """Call it in the order of the lines."""
        self.finding_count += 1
        self.bad_lines += finding.line != self.last_bad_line
        self.last_bad_line = finding.line
        if len(self.findings) < self.max_findings:
            self.findings.append(finding)

    def add_warning(self, code: str, line: int) -> None:
        self.warning_lines.setdefault(code, LineCount()).add(line)

    def warnings(
        self, method: MethodName, context_length: int, label_weights: tuple[float, float] = (1, 1)
    ) -> list[DatasetWarning]:
        """`label_weights` are those of desirable and undesirable answers in the loss."""
        found = {"cut": self.cut, "empty": self.empty} | self.warning_lines
        about_rows = build_warnings(found, method, context_length, self.different_rows)
        return [*about_rows, *label_warnings(self.labels["desirable"], self.labels["undesirable"], label_weights)]

    @property
    def finding_count_text(self) -> str:
        return f"at least {self.finding_count}" if self.finding_count >= MAX_FINDINGS_READ else str(self.finding_count)

    @property
    def findings_text(self) -> str:
        text = format_findings(self.findings)
        if self.finding_count > len(self.findings):
            text += f" These are the first {len(self.findings)} of {self.finding_count_text} problems."
        return text

    def counts(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "labelled_tokens": self.labelled_tokens,
            "cut": self.cut.count,
            "empty": self.empty.count,
        }


def build_report(renderer: Renderer, parameters: DataParameters, max_line_bytes: int, file: BinaryIO) -> DatasetReport:
    """Read a file as the trainer does."""
    report = DatasetReport()
    for _ in read_kept(renderer, parameters, max_line_bytes, file, report, RowIndex()):
        pass
    return report


def read_kept(
    renderer: Renderer,
    parameters: DataParameters,
    max_line_bytes: int,
    file: BinaryIO,
    report: DatasetReport,
    rows: RowIndex,
    training_rows: RowIndex | None = None,
) -> Iterator[RenderedLine]:
    """Yield the trainable documents of each line, and add everything else that a file has to `report` and `rows`.

    Of a validation file the rows that `training_rows` has too are reported.
    """
    for item in renderer.documents_of_each(read_examples(file, max_line_bytes, parameters)):
        if isinstance(item, Finding):
            report.add_finding(item)
        else:
            example, found = item
            report.examples += 1
            digest, earlier = add_row(example, renderer, report, rows)
            report.different_rows += earlier is None
            if earlier is None and training_rows is not None and digest in training_rows.lines:
                report.add_warning("overlap", example.line)
            if rendered := add_example(example, found, report):
                yield example.line, rendered.kept
        if report.finding_count >= MAX_FINDINGS_READ:
            break


def add_row(example: Example, renderer: Renderer, report: DatasetReport, rows: RowIndex) -> tuple[int, int | None]:
    """Add the warnings about a row. The result is its digest, and the line of an earlier row that it repeats."""
    digest = row_digest(example)
    earlier = rows.add(digest, example.line)
    if earlier is not None:
        report.add_warning("duplicate_rows", example.line)
    if example.label is not None:
        report.labels[LABELS[PREFERRED if example.label else REJECTED]].add(example.line)
    for code in warning_codes(example, renderer):
        report.add_warning(code, example.line)
    return digest, earlier


@dataclass(frozen=True)
class RenderedExample:
    """The documents of an example, and the trainable documents within the context length."""

    documents: list[Document]
    kept: list[Document]


def add_example(
    example: Example, documents: list[Document] | TemplateRefused, report: DatasetReport
) -> RenderedExample | None:
    """Add a rendered example to the report; None, with a finding, if the template refuses it."""
    if isinstance(documents, TemplateRefused):
        report.add_finding(Finding(example.line, str(documents), "template_refused"))
        return None
    if any(exceeds_context(document, example.parameters.context_length) for document in documents):
        report.cut.add(example.line)
    kept = truncate(documents, example.parameters)
    if not kept:
        report.empty.add(example.line)
        if not any(document.labelled_count for document in documents):
            report.masked.add(example.line)
        return RenderedExample(documents, kept)
    for trained in split_examples(kept):
        report.lengths.add(list(map(len, trained)), is_pair=METHODS[example.parameters.method].has_pairs)
    report.tokens += sum(len(document) for document in kept)
    report.labelled_tokens += sum(document.labelled_count for document in kept)
    return RenderedExample(documents, kept)
