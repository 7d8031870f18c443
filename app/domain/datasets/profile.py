"""A data set looked at before there is a job: everything that validation would find, and what a person wants to see.

Read by the functions that validation and the trainer use (`read_examples`, `examine_example`), so it cannot differ from
them. Memory is bounded by what is kept of a line, not by the file; what was not read or not tokenized is said.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, BinaryIO

from app.domain.datasets.documents import NON_PREFERRED, PREFERRED, Document
from app.domain.datasets.examples import CHAT, COMPLETION, PAIR, TEXT, Example, Format, format_of, read_examples
from app.domain.datasets.jsonl import Finding, Line, read_lines
from app.domain.datasets.render import Renderer
from app.domain.datasets.report import Rendered, Report, examine_example
from app.domain.datasets.warnings import SeenRows, codes_of, digest_of
from app.domain.jobs.spec import Method

NAMES: dict[str, Format] = {"chat": CHAT, "completion": COMPLETION, "text": TEXT, "preference": PAIR}
SIDES = {PREFERRED: "preferred", NON_PREFERRED: "non_preferred", 0: None}
MOST_SHOWN = 100  # groups of duplicates, rows of an overlap
MOST_LINES_OF_A_GROUP = 10
MOST_BYTES_FOR_METHOD = 8 << 20  # the longest line and more; the API's own process reads them
FIRST_BUCKET = 16
PREVIEW_TOKENS = 2_000  # of one document


@dataclass(frozen=True)
class Limits:
    context_length: int
    max_line_bytes: int
    preview_rows: int = 3
    most_findings: int = 100
    tokenize_every: int = 1  # a large file: every so many rows, evenly over the file
    seconds: float = 60.0  # after which no further line is read


@dataclass
class Survey:
    """What was found. `report` is of the tokenized rows, as validation would make it of all."""

    report: Report
    rows: int = 0  # good lines
    tokenized: int = 0
    is_complete: bool = True  # read to its end
    lines_read: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)  # of each row's longest document, before any cut
    previews: list[dict[str, Any]] = field(default_factory=list)
    duplicates: dict[int, list[int]] = field(default_factory=dict)  # first line -> the lines that repeat it
    duplicate_rows: int = 0
    rows_remembered: int = 0
    overlap: list[tuple[int, int]] = field(default_factory=list)  # (line, line of the validation file)
    overlap_rows: int = 0
    is_validation_complete: bool = True


def survey(
    file: BinaryIO, renderer: Renderer, method: Method, limits: Limits, validation_file: BinaryIO | None = None
) -> Survey:
    """Read a data set once; a validation file before it, for what stands in both."""
    deadline = time.monotonic() + limits.seconds
    found = Survey(Report(most_findings=limits.most_findings))
    held_out = _validation_rows(validation_file, method, limits, deadline, found) if validation_file else SeenRows()
    overlapping: set[int] = set()
    rows = SeenRows()
    for item in read_examples(file, limits.max_line_bytes, method):
        found.lines_read = item.line
        if isinstance(item, Finding):
            found.report.find(item)
        else:
            found.rows += 1
            digest = digest_of(item)
            _note_duplicate(found, rows.add(digest, item.line), item.line)
            if digest in held_out.lines:
                overlapping.add(digest)
                _note_overlap(found, item.line, held_out.lines[digest])
            for code in codes_of(item, renderer):
                found.report.warn(code, item.line)
            _look(found, item, renderer, limits)
        if time.monotonic() > deadline:
            found.is_complete = False
            break
    for digest, line in held_out.lines.items():  # in the order of its lines
        if digest in overlapping:
            found.report.warn("overlap", line)
    found.report.different_rows = len(held_out)
    found.rows_remembered = len(rows) + found.duplicate_rows
    return found


def method_of_file(file: BinaryIO, max_line_bytes: int) -> Method:
    """What the first line that has any format is for; supervised where none has."""
    for item in read_lines(file, max_line_bytes):
        if isinstance(item, Line) and (form := format_of(item.value)):
            return form.method
        if item_number(item) > MOST_SHOWN or file.tell() > MOST_BYTES_FOR_METHOD:
            break
    return "supervised"


def item_number(item: Line | Finding) -> int:
    return item.number if isinstance(item, Line) else item.line


# --- one row ----------------------------------------------------------------------------------------------------------


def _look(found: Survey, example: Example, renderer: Renderer, limits: Limits) -> None:
    name = _name(example)
    found.formats[name] += 1
    if (found.rows - 1) % limits.tokenize_every:
        return
    found.tokenized += 1
    found.report.examples += 1
    rendered = examine_example(example, renderer, limits.context_length, found.report)
    if rendered is None:
        return
    found.lengths[max(map(len, rendered.documents), default=0)] += 1
    if len(found.previews) < limits.preview_rows:
        found.previews.append(_preview(example.line, name, rendered, renderer))


def _name(example: Example) -> str:
    if example.text is not None:
        return "text"
    if example.completion is not None:
        return "completion"
    return "preference" if example.is_pair else "chat"


def _note_duplicate(found: Survey, first: int | None, line: int) -> None:
    if first is None:
        return
    found.duplicate_rows += 1
    found.report.warn("duplicate_rows", line)
    lines = found.duplicates.get(first)
    if lines is not None and len(lines) < MOST_LINES_OF_A_GROUP:
        lines.append(line)
    elif lines is None and len(found.duplicates) < MOST_SHOWN:
        found.duplicates[first] = [line]


def _note_overlap(found: Survey, line: int, validation_line: int) -> None:
    found.overlap_rows += 1
    if len(found.overlap) < MOST_SHOWN:
        found.overlap.append((line, validation_line))


def _validation_rows(file: BinaryIO, method: Method, limits: Limits, deadline: float, found: Survey) -> SeenRows:
    """The validation file's good rows; reading them may take half of the time."""
    rows = SeenRows()
    middle = time.monotonic() + (deadline - time.monotonic()) / 2
    for item in read_examples(file, limits.max_line_bytes, method):
        if isinstance(item, Example):
            rows.add(digest_of(item), item.line)
        if rows.is_full or time.monotonic() > middle:
            found.is_validation_complete = False
            break
    return rows


# --- what the model sees ----------------------------------------------------------------------------------------------


def _preview(line: int, name: str, rendered: Rendered, renderer: Renderer) -> dict[str, Any]:
    """The documents that are trained; of a row that contributes nothing, those that it would have been."""
    shown = rendered.kept or rendered.documents
    before = sum(map(len, rendered.documents))
    return {
        "line": line,
        "format": name,
        "trained": bool(rendered.kept),
        "tokens": before,
        "cut_tokens": 0 if shown[:1] and shown[0].is_text else before - sum(map(len, shown)),
        "documents": [_document(document, renderer) for document in shown],
    }


def _document(document: Document, renderer: Renderer) -> dict[str, Any]:
    return {
        "side": SIDES[document.side],
        "tokens": len(document),
        "trained_tokens": document.labelled_count,
        "omitted_tokens": max(0, len(document) - PREVIEW_TOKENS),
        "segments": list(_segments(document, renderer)),
    }


def _segments(document: Document, renderer: Renderer) -> Iterator[dict[str, Any]]:
    """Stretches of tokens that are trained, or are not."""
    marked = list(zip(document.tokens, document.labelled, strict=True))[:PREVIEW_TOKENS]
    for trained, stretch in groupby(marked, key=lambda each: each[1]):
        ids = [token for token, _ in stretch]
        text = str(renderer.tokenizer.decode(ids, skip_special_tokens=False))
        yield {"text": text, "trained": trained, "token_ids": ids}


# --- numbers ----------------------------------------------------------------------------------------------------------


def quantiles(lengths: Counter[int]) -> dict[str, int | float] | None:
    """None without a row."""
    count = sum(lengths.values())
    if not count:
        return None
    total = sum(length * times for length, times in lengths.items())
    named = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: _quantile(lengths, count, share) for name, share in named.items()} | {"mean": round(total / count, 1)}


def histogram(lengths: Counter[int]) -> list[dict[str, int]]:
    """Buckets that double, from the first to the last that is not empty; `most` belongs to the bucket."""
    counts: Counter[int] = Counter()
    for length, times in lengths.items():
        counts[max(0, (length - 1).bit_length() - (FIRST_BUCKET - 1).bit_length()) if length else 0] += times
    if not counts:
        return []
    return [
        {"least": FIRST_BUCKET * 2 ** (at - 1) + 1 if at else 0, "most": FIRST_BUCKET * 2**at, "rows": counts[at]}
        for at in range(min(counts), max(counts) + 1)
    ]


def _quantile(lengths: Counter[int], count: int, share: float) -> int:
    """The smallest length that so great a share of the rows does not exceed."""
    rank, below = max(1, math.ceil(share * count)), 0
    for length in sorted(lengths):
        below += lengths[length]
        if below >= rank:
            return length
    return max(lengths)
