"""Tables, Excel workbooks and JSON arrays where JSON lines are wanted: recognized by the first line."""

from __future__ import annotations

import re

from app.domain.error_text.json_text import quoted

OTHER_FORMAT = "other_format"  # code of the finding
SAMPLE_BYTES = 64 << 10
MAX_NAMES = 8
TAB = "\t"
DELIMITERS = f",;{TAB}|"
QUOTED = re.compile('"[^"]*"')
ZIP = b"PK\x03\x04"
JSON_ARRAY = re.compile(rb"\s*\[\s*(\{|$)")
NO_TABLE = re.compile(r"^\s*\[|[{}\0]")  # a line with JSON, which may be broken, or binary data
RULE = "but every line must be a JSON object"
WAY = 'convert the file in the dashboard (Datasets) or with the code of the README ("From a CSV to a training file")'


def other_format(line: bytes) -> str | None:
    """What a file with this first line is, and how to convert it; None if it may have JSON lines."""
    line = line[:SAMPLE_BYTES]
    if line.startswith(ZIP):
        return f"an Excel workbook (or another ZIP archive), {RULE}: save the sheet as CSV, then {WAY}"
    if JSON_ARRAY.match(line):
        return f"a JSON array of all examples, {RULE}: write each item into a line of its own (jq -c '.[]')"
    text = line.decode("utf-8", "replace")
    delimiter = delimiter_of(text)
    if NO_TABLE.search(text) or delimiter not in QUOTED.sub("", text):
        return None
    columns = text.split(delimiter, MAX_NAMES)
    names = ", ".join(quoted(name.strip('" \r\n'), 40) for name in columns[:MAX_NAMES])
    more = ", …" if len(columns) > MAX_NAMES else ""
    return f"a {'TSV' if delimiter == TAB else 'CSV'} with the columns {names}{more}, {RULE}: {WAY}"


def delimiter_of(text: str) -> str:
    """The delimiter that the first line of a table has most often outside of quotes; a comma if it has none."""
    first_line = QUOTED.sub("", text).split("\n", 1)[0]
    return max(DELIMITERS, key=first_line.count)
