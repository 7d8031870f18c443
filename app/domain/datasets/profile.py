"""The profile of a dataset before there is a job: the findings of validation, statistics, and previews.

It uses the functions of validation and of the trainer (`read_examples`, `add_example`), so the results agree. Memory is
bounded by what is kept per line, not by the size of the file. The profile states what was not read or not tokenized.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import Any, BinaryIO

from app.domain.datasets.documents import PREFERRED, REJECTED, Document, cut_at_end
from app.domain.datasets.examples import Example, detect_format, read_examples
from app.domain.datasets.jsonl import Finding, Line, read_lines
from app.domain.datasets.render import Renderer
from app.domain.datasets.report import LABELS, DatasetReport, RenderedExample, add_example, add_row
from app.domain.datasets.warnings import RowIndex, row_digest
from app.domain.jobs.spec import DataParameters
from app.domain.methods import MethodName

SIDES = {PREFERRED: "preferred", REJECTED: "non_preferred", 0: None}
MAX_SHOWN = 100  # groups of duplicates, overlapping rows
MAX_LINES_PER_GROUP = 10
MAX_BYTES_FOR_METHOD = 8 << 20  # more than the longest line; the API process reads them
FIRST_BUCKET_TOKENS = 16
PREVIEW_TOKENS = 2_000  # per document


@dataclass(frozen=True)
class ProfileLimits:
    max_line_bytes: int
    preview_rows: int = 3
    max_findings: int = 100
    tokenize_every: int = 1  # tokenize only every n-th row of a large file
    timeout_seconds: float = 60.0  # no further line is read after it


@dataclass
class DatasetProfile:
    """The profile of a file; `report` covers the tokenized rows."""

    report: DatasetReport
    rows: int = 0  # valid lines
    tokenized: int = 0
    is_complete: bool = True  # the whole file was read
    lines_read: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)  # of each row's longest document, before truncation
    previews: list[dict[str, Any]] = field(default_factory=list)
    duplicates: dict[int, list[int]] = field(default_factory=dict)  # first line -> the lines that repeat it
    duplicate_rows: int = 0
    rows_remembered: int = 0
    overlap: list[tuple[int, int]] = field(default_factory=list)  # (line, line of the validation file)
    overlap_rows: int = 0
    is_validation_complete: bool = True


def profile_dataset(
    renderer: Renderer,
    parameters: DataParameters,
    limits: ProfileLimits,
    file: BinaryIO,
    validation_file: BinaryIO | None = None,
) -> DatasetProfile:
    """Read a dataset once, after its validation file, whose rows are compared with it."""
    deadline = time.monotonic() + limits.timeout_seconds
    profile = DatasetProfile(DatasetReport(max_findings=limits.max_findings))
    validation_rows = (
        _read_validation_rows(validation_file, parameters, limits, profile) if validation_file else RowIndex()
    )
    overlapping: set[int] = set()
    rows = RowIndex()
    for item in read_examples(file, limits.max_line_bytes, parameters):
        profile.lines_read = item.line
        if isinstance(item, Finding):
            profile.report.add_finding(item)
        else:
            profile.rows += 1
            digest, earlier = add_row(item, renderer, profile.report, rows)
            _add_duplicate(profile, earlier, item.line)
            if digest in validation_rows.lines:
                overlapping.add(digest)
                _add_overlap(profile, item.line, validation_rows.lines[digest])
            _profile_example(profile, item, renderer, limits)
        if time.monotonic() > deadline:
            profile.is_complete = False
            break
    for digest, line in validation_rows.lines.items():  # in the order of its lines
        if digest in overlapping:
            profile.report.add_warning("overlap", line)
    profile.report.different_rows = len(validation_rows)
    profile.rows_remembered = len(rows) + profile.duplicate_rows
    return profile


def method_of_file(file: BinaryIO, max_line_bytes: int) -> MethodName:
    """The method of the first line with a known format; supervised if there is none."""
    for item in islice(read_lines(file, max_line_bytes), MAX_SHOWN):
        if isinstance(item, Line) and (form := detect_format(item.value)):
            return form.methods[0].name
        if file.tell() > MAX_BYTES_FOR_METHOD:
            break
    return "supervised"


# --- one row ----------------------------------------------------------------------------------------------------------


def _profile_example(profile: DatasetProfile, example: Example, renderer: Renderer, limits: ProfileLimits) -> None:
    profile.formats[example.format] += 1
    if (profile.rows - 1) % limits.tokenize_every:
        return
    profile.tokenized += 1
    profile.report.examples += 1
    rendered = add_example(example, renderer.documents_or_refusal(example), profile.report)
    if rendered is None:
        return
    profile.lengths[max(map(len, rendered.documents), default=0)] += 1
    if len(profile.previews) < limits.preview_rows:
        profile.previews.append(_preview(example, rendered, renderer))


def _add_duplicate(profile: DatasetProfile, first: int | None, line: int) -> None:
    if first is None:
        return
    profile.duplicate_rows += 1
    lines = profile.duplicates.get(first)
    if lines is not None and len(lines) < MAX_LINES_PER_GROUP:
        lines.append(line)
    elif lines is None and len(profile.duplicates) < MAX_SHOWN:
        profile.duplicates[first] = [line]


def _add_overlap(profile: DatasetProfile, line: int, validation_line: int) -> None:
    profile.overlap_rows += 1
    if len(profile.overlap) < MAX_SHOWN:
        profile.overlap.append((line, validation_line))


def _read_validation_rows(
    file: BinaryIO, parameters: DataParameters, limits: ProfileLimits, profile: DatasetProfile
) -> RowIndex:
    """The valid rows of the validation file; reading them may take half of the time limit."""
    rows = RowIndex()
    half_time = time.monotonic() + limits.timeout_seconds / 2
    for item in read_examples(file, limits.max_line_bytes, parameters):
        if isinstance(item, Example):
            rows.add(row_digest(item), item.line)
        if rows.is_full or time.monotonic() > half_time:
            profile.is_validation_complete = False
            break
    return rows


# --- what the model sees ----------------------------------------------------------------------------------------------


def _preview(example: Example, rendered: RenderedExample, renderer: Renderer) -> dict[str, Any]:
    """The trained documents of a row; all its documents, truncated, if none is trained."""
    length = example.parameters.context_length
    shown = rendered.kept or [
        document if document.is_text else cut_at_end(document, length) for document in rendered.documents
    ]
    total_tokens = sum(map(len, rendered.documents))
    return {
        "line": example.line,
        "format": example.format,
        "trained": bool(rendered.kept),
        "tokens": total_tokens,
        "cut_tokens": 0 if shown[:1] and shown[0].is_text else total_tokens - sum(map(len, shown)),
        "documents": [
            _document(document, _truncated(document, rendered.documents), renderer)
            | {"side": (SIDES if example.label is None else LABELS)[document.role]}
            for document in shown
        ],
    }


def _truncated(document: Document, whole: Iterable[Document]) -> Document:
    """The tokens after the end of a truncated document; a plain text is split and loses none."""
    length = len(document)
    for one in () if document.is_text else whole:
        if one.role == document.role and len(one) > length and one.tokens[:length] == document.tokens:
            return replace(one, tokens=one.tokens[length:], labelled=one.labelled[length:])
    return replace(document, tokens=[], labelled=[])


def _document(document: Document, truncated: Document, renderer: Renderer) -> dict[str, Any]:
    return {
        "tokens": len(document),
        "trained_tokens": document.labelled_count,
        "omitted_tokens": max(0, len(document) - PREVIEW_TOKENS),
        "segments": list(_segments(document, renderer)),
        "truncated_tokens": len(truncated),
        "truncated_segments": list(_segments(truncated, renderer)),
    }


def _segments(document: Document, renderer: Renderer) -> Iterator[dict[str, Any]]:
    """The stretches of consecutive trained or untrained tokens."""
    token_labels = list(zip(document.tokens, document.labelled, strict=True))[:PREVIEW_TOKENS]
    for trained, stretch in groupby(token_labels, key=lambda each: each[1]):
        ids = [token for token, _ in stretch]
        text = str(renderer.tokenizer.decode(ids, skip_special_tokens=False))
        yield {"text": text, "trained": trained, "token_ids": ids}


# --- numbers ----------------------------------------------------------------------------------------------------------


def quantiles(lengths: Counter[int]) -> dict[str, int | float] | None:
    """Quantiles and mean of the lengths; None without a row."""
    count = sum(lengths.values())
    if not count:
        return None
    total = sum(length * times for length, times in lengths.items())
    shares = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: _quantile(lengths, count, share) for name, share in shares.items()} | {
        "mean": round(total / count, 1)
    }


def histogram(lengths: Counter[int]) -> list[dict[str, int]]:
    """Buckets of doubling size, from the first to the last non-empty one; `least` and `most` are inclusive."""
    counts: Counter[int] = Counter()
    for length, times in lengths.items():
        counts[max(0, (length - 1).bit_length() - (FIRST_BUCKET_TOKENS - 1).bit_length()) if length else 0] += times
    if not counts:
        return []
    return [
        {
            "least": FIRST_BUCKET_TOKENS * 2 ** (at - 1) + 1 if at else 0,
            "most": FIRST_BUCKET_TOKENS * 2**at,
            "rows": counts[at],
        }
        for at in range(min(counts), max(counts) + 1)
    ]


def _quantile(lengths: Counter[int], count: int, share: float) -> int:
    """The smallest length that at least this share of the rows does not exceed."""
    rank, below = max(1, math.ceil(share * count)), 0
    for length in sorted(lengths):
        below += lengths[length]
        if below >= rank:
            return length
    return max(lengths)
