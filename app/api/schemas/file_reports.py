"""The report on a dataset, and the function that renders it."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.common import Body, WarningBody
from app.domain.datasets.report import no_trainable_tokens_message
from app.services.datasets.profile import Json, Profile, ProfileInputs

Format = Literal["chat", "completion", "text", "preference", "mixed"]


class ReportLines(Body):
    count: int
    first_lines: list[int]


class ReportFinding(Body):
    line: int
    code: str
    message: str


class ReportFindings(Body):
    """`data` has the first hundred findings, `count` is the number of all, `lines` the number of affected lines."""

    count: int
    lines: int
    data: list[ReportFinding]


class Coverage(Body):
    """How much of the file the numbers cover. With `tokenized_every` above 1, token counts come from a sample."""

    complete: bool
    lines_read: int
    rows: int
    tokenized_rows: int
    tokenized_every: int
    rows_compared: int
    validation_file_complete: bool | None


class Lengths(Body):
    """Tokens of each row's longest document before truncation, to compare with `context_length`."""

    min: int
    median: int
    mean: float
    p90: int
    p99: int
    max: int


class Bucket(Body):
    """Rows with `least` to `most` tokens, both inclusive."""

    least: int
    most: int
    rows: int


class Tokens(Body):
    """`total` and `trained` are for one epoch, after truncation."""

    total: int
    trained: int
    lengths: Lengths | None
    histogram: list[Bucket]


class DuplicateGroup(Body):
    lines: list[int]


class Duplicates(Body):
    """`rows` is the number of rows that repeat an earlier one; the first hundred groups, up to eleven lines of each."""

    rows: int
    groups: list[DuplicateGroup]


class OverlapRow(Body):
    line: int
    validation_line: int


class Overlap(Body):
    """`rows` is the number of rows that are also in the validation file; `data` has the first hundred."""

    validation_file: str
    rows: int
    data: list[OverlapRow]


class Segment(Body):
    text: str
    trained: bool
    token_ids: list[int]


class PreviewDocument(Body):
    side: Literal["preferred", "non_preferred"] | None
    tokens: int
    trained_tokens: int
    omitted_tokens: int
    segments: list[Segment]
    truncated_tokens: int
    truncated_segments: list[Segment]


class PreviewRow(Body):
    line: int
    format: Format
    trained: bool
    tokens: int
    cut_tokens: int
    documents: list[PreviewDocument]


class FileReportBody(Body):
    object: Literal["file.report"]
    file: str
    filename: str
    bytes: int
    sha256: str
    model: str
    method: Literal["supervised", "dpo"]
    context_length: int
    valid: bool
    message: str
    format: Format | None
    formats: dict[str, int]
    findings: ReportFindings
    warnings: list[WarningBody]
    coverage: Coverage
    tokens: Tokens
    cut: ReportLines
    empty: ReportLines
    masked: ReportLines
    duplicates: Duplicates
    overlap: Overlap | None
    rows: list[PreviewRow]


def render_report(profile: Profile) -> dict[str, Any]:
    inputs, report = profile.inputs, profile.report
    problem = _failure(report, inputs)
    formats, warnings = report["formats"], _warnings(profile)
    return {
        "object": "file.report",
        "file": inputs.file.id,
        "filename": inputs.file.filename,
        "bytes": inputs.file.bytes,
        "sha256": inputs.file.sha256,
        "model": inputs.model,
        "method": report["method"],
        "context_length": inputs.parameters.context_length,
        "valid": problem is None,
        "message": " ".join([problem or _accepted(len(warnings)), *_coverage_notes(profile)]),
        "format": next(iter(formats)) if len(formats) == 1 else "mixed" if formats else None,
        "formats": formats,
        "findings": {"count": report["finding_count"], "lines": report["bad_lines"], "data": report["findings"]},
        "warnings": warnings,
        "coverage": _coverage(profile),
        "tokens": {
            "total": report["tokens"],
            "trained": report["labelled_tokens"],
            "lengths": report["lengths"],
            "histogram": report["histogram"],
        },
        **{name: _lines(report[name]) for name in ("cut", "empty", "masked")},
        "duplicates": {
            "rows": report["duplicate_rows"],
            "groups": [{"lines": lines} for lines in report["duplicates"]],
        },
        "overlap": _overlap(profile),
        "rows": report["previews"],
    }


def _failure(report: Json, inputs: ProfileInputs) -> str | None:
    """The reason for which a job with this file would fail; None if it would not."""
    if report["finding_count"]:
        lines = "line has" if report["bad_lines"] == 1 else "lines have"
        return f"{report['bad_lines']:,} {lines} an unsupported format for a {report['method']} job."
    if report["rows"] < inputs.least_examples and report["is_complete"]:
        return f"The file has {report['rows']} example(s), but must have at least {inputs.least_examples}."
    if not report["labelled_tokens"]:
        return no_trainable_tokens_message(report["method"], inputs.parameters.context_length)
    return None


def _accepted(warnings: int) -> str:
    if not warnings:
        return "Valid: this file can be used for training."
    return f"Valid: this file can be used for training, with {warnings} warning{'s' if warnings > 1 else ''}."


def _warnings(profile: Profile) -> list[dict[str, Any]]:
    """The warnings with file ids. The lines of an overlap are lines of the validation file."""
    file, validation_file = profile.inputs.file, profile.inputs.validation_file
    warnings = []
    for warning in profile.report["warnings"]:
        warned_file = validation_file if warning["code"] == "overlap" and validation_file is not None else file
        message = f"{warning['message'][0].upper()}{warning['message'][1:]}."
        warnings.append(warning | {"file": warned_file.id, "message": message})
    return warnings


def _coverage_notes(profile: Profile) -> list[str]:
    report, every = profile.report, profile.inputs.limits.tokenize_every
    notes = []
    if every > 1:
        notes.append(f"Every line was checked; the file is large, so only one of {every} rows was tokenized.")
    if not report["is_complete"]:
        notes.append(
            f"The time limit was reached at line {report['lines_read']:,}: the lines after it were not checked."
        )
    if not report["is_validation_complete"]:
        notes.append("Only a part of the validation file was compared.")
    return notes


def _coverage(profile: Profile) -> dict[str, Any]:
    inputs, report = profile.inputs, profile.report
    return {
        "complete": report["is_complete"],
        "lines_read": report["lines_read"],
        "rows": report["rows"],
        "tokenized_rows": report["tokenized_rows"],
        "tokenized_every": inputs.limits.tokenize_every,
        "rows_compared": report["rows_remembered"],
        "validation_file_complete": report["is_validation_complete"] if inputs.validation_file else None,
    }


def _overlap(profile: Profile) -> dict[str, Any] | None:
    validation_file, report = profile.inputs.validation_file, profile.report
    if validation_file is None:
        return None
    data = [{"line": line, "validation_line": other} for line, other in report["overlap"]]
    return {"validation_file": validation_file.id, "rows": report["overlap_rows"], "data": data}


def _lines(lines: Json) -> dict[str, Any]:
    return {"count": lines["count"], "first_lines": lines["first"]}
