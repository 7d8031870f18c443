"""The report on a dataset."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema

from app.api.schemas.common import Body, WarningBody
from app.domain.datasets.examples import FORMATS
from app.domain.datasets.profile import histogram, quantiles
from app.domain.datasets.report import no_trainable_tokens_message
from app.domain.methods import MethodName
from app.services.datasets.profile import Profile

FORMAT_NAMES = [*(form.name for form in FORMATS), "mixed"]
Format = Annotated[str, WithJsonSchema({"type": "string", "enum": FORMAT_NAMES})]


class ReportLines(Body):
    count: int
    """The number of rows."""
    first_lines: list[int] = Field(validation_alias="first")
    """Line numbers of the first of these rows, counted from 1."""


class ReportFinding(Body):
    line: int
    """The line number, counted from 1."""
    code: str
    """The kind of finding, such as `invalid_role`."""
    message: str
    """The problem and the allowed values."""


class ReportFindings(Body):
    """`data` has the first hundred findings, `count` is the number of all, `lines` the number of affected lines."""

    count: int
    """The number of all findings."""
    lines: int
    """The number of lines with at least one finding."""
    data: list[ReportFinding]
    """The first hundred findings."""


class Coverage(Body):
    """How much of the file the numbers cover. With `tokenized_every` above 1, token counts come from a sample."""

    complete: bool
    """Whether the file was read to its end; false: the time limit of a minute was reached."""
    lines_read: int
    """The number of the last line that was read, counted from 1."""
    rows: int
    """The number of valid rows among them."""
    tokenized_rows: int
    """The number of tokenized rows, the basis of `tokens`, `cut`, `empty` and `masked`."""
    tokenized_every: int
    """Above 1, only every n-th row of a large file was tokenized, evenly spread."""
    rows_compared: int
    """Rows that were compared to find duplicates: all, up to a million different ones."""
    validation_file_complete: bool | None
    """Whether the whole validation file was compared; null: none was given."""


class Lengths(Body):
    """Tokens of each row's longest document before truncation, to compare with `context_length`."""

    min: int
    """The shortest."""
    median: int
    """The median."""
    mean: float
    """The average."""
    p90: int
    """The 90th percentile."""
    p99: int
    """The 99th percentile."""
    max: int
    """The longest."""


class Bucket(Body):
    """Rows with `least` to `most` tokens, both inclusive."""

    least: int
    """The minimum number of tokens of a row in the bucket."""
    most: int
    """The maximum number of tokens of a row in the bucket."""
    rows: int
    """The number of rows."""


class Tokens(Body):
    """`total` and `trained` are for one epoch, after truncation."""

    total: int
    """Tokens that the model processes in one epoch, after truncation."""
    trained: int
    """The tokens among them that the model learns to produce."""
    lengths: Lengths | None
    """Lengths of each row's longest document before truncation; null: no row was tokenized."""
    histogram: list[Bucket]
    """Rows by the tokens of their longest document before truncation, in buckets that double."""


class DuplicateGroup(Body):
    lines: list[int]
    """Lines with the same row, the first occurrence first; up to eleven."""


class Duplicates(Body):
    """`rows` is the number of rows that repeat an earlier one; the first hundred groups, up to eleven lines of each."""

    rows: int
    """The number of rows that repeat an earlier one."""
    groups: list[DuplicateGroup]
    """The first hundred groups."""


class OverlapRow(Body):
    line: int
    """The line of this file, counted from 1."""
    validation_line: int
    """The line of the validation file with the same row."""


class Overlap(Body):
    """`rows` is the number of rows that are also in the validation file; `data` has the first hundred."""

    validation_file: str
    """The id of the validation file."""
    rows: int
    """The number of rows in both files."""
    data: list[OverlapRow]
    """The first hundred of these rows."""


class Segment(Body):
    text: str
    """The text as the tokenizer decodes it, including special tokens."""
    trained: bool
    """Whether the model learns to produce the text."""
    token_ids: list[int]
    """The tokens of the text."""


class PreviewDocument(Body):
    side: Literal["preferred", "non_preferred", "desirable", "undesirable"] | None
    """The answer of a preference pair, or the label of an answer; null: the row has neither."""
    tokens: int
    """The number of tokens of the document."""
    trained_tokens: int
    """The number of learned tokens among them."""
    omitted_tokens: int
    """Tokens at the end that the preview omits: those after the first 2,000."""
    segments: list[Segment]
    """The text, split where learning starts or stops."""
    truncated_tokens: int
    """Tokens after the context length, which are not trained."""
    truncated_segments: list[Segment]
    """Their text, split in the same way; at most its first 2,000 tokens."""


class PreviewRow(Body):
    line: int
    """The line number, counted from 1."""
    format: Format
    """The format of the row."""
    trained: bool
    """False: the row has no token to learn, and a job skips it."""
    tokens: int
    """The number of tokens before truncation."""
    cut_tokens: int
    """Tokens beyond `context_length`, which are dropped; 0 for plain text, which is split into several documents."""
    documents: list[PreviewDocument]
    """What the model processes: one document, both answers of a pair, or parts of a long text."""


class Labels(Body):
    desirable: int
    """The number of rows with the label true."""
    undesirable: int
    """The number of rows with the label false."""


class FileReportBody(Body):
    object: Literal["file.report"] = "file.report"
    file: str
    """The id of the file."""
    filename: str
    bytes: int
    sha256: str
    model: str
    """The model whose tokenizer and chat template were used."""
    method: MethodName
    """The method that the rows were checked for: as requested, or the method of the first row."""
    context_length: int
    """The maximum number of tokens of a document; longer ones are truncated. The requested value, or the model's."""
    valid: bool
    """Whether a job can use the file."""
    message: str
    """The verdict in a sentence, and which parts were not fully checked."""
    format: Format | None
    """The format of all rows, or `mixed`; null: no row is valid."""
    formats: dict[str, int]
    """The number of rows of each format."""
    findings: ReportFindings
    """Invalid lines, which would fail a job."""
    warnings: list[WarningBody]
    """Problems that do not fail a job but may be unintended, one entry for each kind."""
    coverage: Coverage
    """How much of the file the numbers cover."""
    tokens: Tokens
    """The number of tokens, of learned tokens, and their distribution."""
    labels: Labels | None
    """The number of rows by their label; null: the rows have none."""
    cut: ReportLines
    """Rows longer than `context_length`."""
    empty: ReportLines
    """Rows without a token to learn; a job skips them."""
    masked: ReportLines
    """The rows of `empty` that have no token to learn even before truncation."""
    duplicates: Duplicates
    """Rows equal to an earlier row; white space and the order of keys are ignored."""
    overlap: Overlap | None
    """Rows that are also in the validation file: they make the validation loss look better than it is. Null: no
    validation file was given.
    """
    rows: list[PreviewRow]
    """The first rows as the model sees them, as many as `rows` requests."""

    @classmethod
    def of(cls, profile: Profile) -> Self:
        inputs, found, report = profile.inputs, profile.found, profile.found.report
        problem, warnings = _failure(profile), _warnings(profile)
        return cls(
            file=inputs.file.id,
            filename=inputs.file.filename,
            bytes=inputs.file.bytes,
            sha256=inputs.file.sha256,
            model=inputs.model,
            method=profile.parameters.method,
            context_length=profile.parameters.context_length,
            valid=problem is None,
            message=" ".join([problem or _accepted(len(warnings)), *_coverage_notes(profile)]),
            format=next(iter(found.formats)) if len(found.formats) == 1 else "mixed" if found.formats else None,
            formats=found.formats,
            findings={"count": report.finding_count, "lines": report.bad_lines, "data": report.findings},
            warnings=warnings,
            coverage=_coverage(profile),
            tokens={
                "total": report.tokens,
                "trained": report.labelled_tokens,
                "lengths": quantiles(found.lengths),
                "histogram": histogram(found.lengths),
            },
            labels={name: report.labels[name].count for name in report.labels} if "labelled" in found.formats else None,
            cut=report.cut,
            empty=report.empty,
            masked=report.masked,
            duplicates={
                "rows": found.duplicate_rows,
                "groups": [{"lines": [first, *lines]} for first, lines in found.duplicates.items()],
            },
            overlap=_overlap(profile),
            rows=found.previews,
        )


def _failure(profile: Profile) -> str | None:
    """The reason for which a job with this file would fail; None if it would not."""
    found, report, least = profile.found, profile.found.report, profile.inputs.least_examples
    method, context_length = profile.parameters.method, profile.parameters.context_length
    if report.finding_count:
        lines = "line has" if report.bad_lines == 1 else "lines have"
        return f"{report.bad_lines:,} {lines} an unsupported format for a {method} job."
    if found.rows < least and found.is_complete:
        return f"The file has {found.rows} example(s), but must have at least {least}."
    if not report.labelled_tokens:
        return no_trainable_tokens_message(method, context_length)
    return None


def _accepted(warnings: int) -> str:
    if not warnings:
        return "Valid: this file can be used for training."
    return f"Valid: this file can be used for training, with {warnings} warning{'s' if warnings > 1 else ''}."


def _warnings(profile: Profile) -> list[dict[str, Any]]:
    """The warnings with file ids. The lines of an overlap are lines of the validation file."""
    file, validation_file = profile.inputs.file, profile.inputs.validation_file
    warnings = []
    for warning in profile.found.report.warnings(profile.parameters.method, profile.parameters.context_length):
        warned_file = validation_file if warning.code == "overlap" and validation_file is not None else file
        message = f"{warning.message[0].upper()}{warning.message[1:]}."
        warnings.append(vars(warning) | {"file": warned_file.id, "message": message})
    return warnings


def _coverage_notes(profile: Profile) -> list[str]:
    found, every = profile.found, profile.inputs.limits.tokenize_every
    notes = []
    if every > 1:
        notes.append(f"Every line was checked; the file is large, so only one of {every} rows was tokenized.")
    if not found.is_complete:
        notes.append(f"The time limit was reached at line {found.lines_read:,}: the lines after it were not checked.")
    if not found.is_validation_complete:
        notes.append("Only a part of the validation file was compared.")
    return notes


def _coverage(profile: Profile) -> dict[str, Any]:
    inputs, found = profile.inputs, profile.found
    return {
        "complete": found.is_complete,
        "lines_read": found.lines_read,
        "rows": found.rows,
        "tokenized_rows": found.tokenized,
        "tokenized_every": inputs.limits.tokenize_every,
        "rows_compared": found.rows_remembered,
        "validation_file_complete": found.is_validation_complete if inputs.validation_file else None,
    }


def _overlap(profile: Profile) -> dict[str, Any] | None:
    validation_file, found = profile.inputs.validation_file, profile.found
    if validation_file is None:
        return None
    data = [{"line": line, "validation_line": other} for line, other in found.overlap]
    return {"validation_file": validation_file.id, "rows": found.overlap_rows, "data": data}
