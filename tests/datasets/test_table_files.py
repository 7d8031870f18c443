"""Tables of every kind become the same examples; what is none, or too large, is refused with a reason."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.domain.datasets.preparation import Preparation, PreparedRows
from app.domain.datasets.tables import Columns, RowProblems, TableError, json_line, looks_like_header
from app.system import table_files
from app.system.table_files import Preview, prepare, preview_file
from tests.datasets.workbooks import parquet, workbook_members, write_bomb, zipped
from tests.sentences import Reviewed

MAX_LINE_BYTES = 1 << 20
Q_A = Columns("q", "a")
ROWS = [("1", "2"), ("ä, b", "=1+1")]
XLSX = zipped(workbook_members([("q", "a", "note"), (1, 2.0, "x"), ("ä, b", "=1+1", 2.5), ("", "", "only a note")]))
PARQUET = parquet({"q": ["1", "ä, b", None], "a": [2, None, 3], "b": ["2", "=1+1", "3"]})
NUMBERED = parquet({"0": ["x", "y"], "1": [2.0, float("nan")]})  # as pandas names columns and missing numbers
TABLES = {
    "comma": (b'q,a,note\n1,2,\n"\xc3\xa4, b",=1+1,\n', Q_A),
    "semicolon": (b"q;a;note\n1;2;\n\xc3\xa4, b;=1+1;\n", Q_A),
    "tab": ("q\ta\tnote\n1\t2\t\nä, b\t=1+1\t\n".encode("utf-8-sig"), Q_A),
    "bar": (b"q|a|note\n1|2|\n\xc3\xa4, b|=1+1|\n", Q_A),
    "delimiters behind": (b'q,a,,\n1,2,,\n"\xc3\xa4, b",=1+1,,\n', Q_A),  # as spreadsheets write them
    "without input or output": (b'q,a\n,2\n1,\n\n1,2\n"\xc3\xa4, b",=1+1\n', Q_A),
    "spaces around names": (b'q , a\n1,2\n"\xc3\xa4, b",=1+1\n', Q_A),
    "without a header": (b'1,2\n"\xc3\xa4, b",=1+1\n', Columns("#1", "#2")),
    "workbook": (XLSX, Q_A),
    "parquet": (PARQUET, Columns("q", "b")),
}
NO_TABLES = {
    "empty": (b"", Q_A),
    "binary": (b"\x89PNG\0\0", Q_A),
    "not UTF-8": ("q,a\nä,b\n".encode("latin-1"), Q_A),
    "fields": (b"q,a\n1,2,3\n1,2\n1,2,3,4\n1\n", Q_A),
    "repeated name": (b"q,q\n1,2\n", Q_A),
    "one column": (b"question / answer\n1\n", Q_A),
    "no such column": (b"text,label\n1,2\n", Q_A),
    "json lines": (b'{"prompt": "a"}\n', Q_A),
    "no rows": (b"q,a\n1,\n", Q_A),
    "long row": (b"q,a\n1,2\n" + b"x" * MAX_LINE_BYTES + b",2\n", Q_A),
    "broken workbook": (XLSX[:-40], Q_A),
    "no workbook": (zipped({"a.txt": b"q,a"}), Q_A),
    "broken parquet": (PARQUET[:-40], Q_A),
    "bad lines": (b'{"prompt": "a"}\n{"prompt": "a", }\nNaN\n', None),
    "a table without columns": (b"text,label\n1,2\n", None),
    "a Parquet file without columns": (PARQUET, None),
}


def prepared(directory: Path, content: bytes, preparation: Preparation) -> tuple[PreparedRows, bytes, bytes]:
    path = directory / "table"
    path.write_bytes(content)
    with path.open("rb") as file:
        facts, *pieces = prepare(preparation, MAX_LINE_BYTES, file)
    assert isinstance(facts, PreparedRows)
    parts = [
        b"".join(piece[1] for piece in pieces if not isinstance(piece, PreparedRows) and piece[0] == side)
        for side in (0, 1)
    ]
    return facts, parts[0], parts[1]


def shown(directory: Path, content: bytes, has_header: bool | None = None, **fields: Any) -> Preview:
    path = directory / "table"
    path.write_bytes(content)
    with path.open("rb") as file:
        return preview_file(file, Preparation(**fields), has_header, MAX_LINE_BYTES)


def lines_of(rows: list[tuple[str, str]]) -> bytes:
    roles = ("user", "assistant")
    return b"".join(
        json_line({"messages": [{"role": role, "content": text} for role, text in zip(roles, row, strict=True)]})
        for row in rows
    )


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_any_kind_becomes_the_same_lines(tmp_path: Path, name: str) -> None:
    content, columns = TABLES[name]
    assert prepared(tmp_path, content, Preparation(columns))[1] == lines_of(ROWS)


def test_a_number_that_is_missing_is_no_text(tmp_path: Path) -> None:
    assert prepared(tmp_path, NUMBERED, Preparation(Columns("0", "1")))[1] == lines_of([("x", "2")])


@pytest.mark.parametrize("name", ["a,b", 'a "b"', "two\nlines", '"'])
def test_names_of_columns_survive_the_form(name: str) -> None:
    columns = Columns(name, "label", f"{name} 2")
    assert Columns.parse(str(columns)) == columns


def test_a_system_column_comes_first_where_it_has_text(tmp_path: Path) -> None:
    content = b"q,a,s\n1,2,Be brief.\n3,4,\n"
    examples = shown(tmp_path, content, columns=Columns("q", "a", "s")).examples
    roles = [[message["role"] for message in each["messages"]] for each in examples]
    assert roles == [["system", "user", "assistant"], ["user", "assistant"]]


def test_a_file_that_cannot_be_used_says_why_with_all_its_rows(tmp_path: Path, reviewed: Reviewed) -> None:
    for name, (content, columns) in NO_TABLES.items():
        with pytest.raises(TableError) as raised:
            prepared(tmp_path, content, Preparation(columns))
        reviewed(f"{name}: {raised.value}")


def test_only_the_first_problems_are_listed(tmp_path: Path) -> None:
    with pytest.raises(RowProblems, match=r"30 rows .*10") as raised:
        prepared(tmp_path, b"q,a\n" + b"1,2,3\n" * 30, Preparation(Q_A))
    assert re.findall(r"Row (\d+):", str(raised.value)) == [str(number) for number in range(2, 22)]


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_every_cell_survives_the_conversion(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    rows = [(q, a) for q, a in rows if q.strip() and a.strip() and "\0" not in q + a]
    if not rows or any("\ud800" <= character <= "\udfff" for pair in rows for character in "".join(pair)):
        return
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("q", "a"), *rows])
    assert prepared(tmp_path, text.getvalue().encode(), Preparation(Q_A))[1] == lines_of(rows)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["text", "label"], ["a", "b"]], True),
        ([["Text", "Label", "note"], ["a", "b", "note"]], True),
        ([["my card is lost", "card"], ["where is it", "card"]], False),  # the label occurs again
        ([["1", "2"], ["3", "4"]], False),
        ([["a" * 80, "b"], ["c", "d"]], False),
        ([["a", "a"], ["c", "d"]], False),
        ([], True),
    ],
)
def test_a_header_is_told_from_a_row(rows: list[list[str]], expected: bool) -> None:
    assert looks_like_header(rows) is expected


def test_a_preview_guesses_header_and_columns_and_counts_labels(tmp_path: Path) -> None:
    content = b"text,label\n" + b"".join(b"t%d,%s\n" % (n, b"ab"[n % 2 :][:1]) for n in range(40))
    found = shown(tmp_path, content, held_out_percent=10)
    assert (found.names, found.columns) == (["text", "label"], Columns("text", "label"))
    assert found.prepared is not None
    assert found.prepared.labels == {label: {"training": 18, "held_out": 2} for label in "ab"}
    assert len(found.examples) == 3
    assert shown(tmp_path, content, has_header=False).columns == Columns("#1", "#2")
    assert shown(tmp_path, b"x,y,z\n1,2,3\n").columns is None
    assert shown(tmp_path, NUMBERED).columns == Columns("0", "1")
    assert "Row 2" in shown(tmp_path, b"q,a\n1,2,3\n", columns=Q_A).problem


def test_json_lines_keep_their_bytes(tmp_path: Path) -> None:
    lines = [b'{"prompt":  "%d", "completion": "x"}' % n for n in range(12)]
    content = b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines)
    facts, training, held_out = prepared(tmp_path, content, Preparation(None, 25, 3))
    assert (facts.rows, facts.held_out_rows) == (12, 3)
    assert sorted((training + held_out).splitlines()) == sorted(lines)
    assert [line for line in lines if line in training.splitlines()] == training.splitlines()


def test_a_workbook_of_10_megabytes_that_unpacks_to_10_gigabytes_is_refused(tmp_path: Path) -> None:
    write_bomb(tmp_path / "bomb.xlsx", "xl/sharedStrings.xml", b"<sst>", blocks=250, members=4)
    size_bytes = (tmp_path / "bomb.xlsx").stat().st_size
    assert 9 << 20 < size_bytes < 12 << 20
    with (tmp_path / "bomb.xlsx").open("rb") as file, pytest.raises(TableError, match=r"unpacks to 10,48\d,"):
        preview_file(file, Preparation(), None, MAX_LINE_BYTES)


@pytest.mark.parametrize(
    ("stated_bytes", "message"), [(1000, "workbook cannot be read"), (None, re.escape(table_files.TOO_LARGE))]
)
def test_a_workbook_that_unpacks_to_more_than_it_states_or_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated_bytes: int | None, message: str
) -> None:
    monkeypatch.setattr(table_files, "MEMORY_BYTES", 256 << 20)
    start = b'<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><si><t>'
    write_bomb(tmp_path / "bomb.xlsx", "xl/sharedStrings.xml", start, 60, 1, stated_bytes)
    with (tmp_path / "bomb.xlsx").open("rb") as file, pytest.raises(TableError, match=message):
        preview_file(file, Preparation(), None, MAX_LINE_BYTES)


@pytest.mark.parametrize("limit", ["MAX_CELLS", "MAX_ROWS", "MAX_PREPARED_BYTES"])
def test_cells_rows_and_lines_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(table_files, limit, 1)
    for content, columns in (TABLES["comma"], TABLES["workbook"], TABLES["parquet"]):
        with pytest.raises(TableError, match="more than 1 "):
            prepared(
                tmp_path,
                content + (b"1,2,3\n" * 9 if columns is Q_A and content != XLSX else b""),
                Preparation(columns),
            )


def test_the_time_of_a_preview_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "read_seconds", lambda _: 0.0)
    with pytest.raises(TableError, match=" 0 s"):
        shown(tmp_path, b"q,a\n" + b"1,2\n" * 300_000)
