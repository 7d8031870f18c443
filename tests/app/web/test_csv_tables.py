"""CSV files become chat examples; what is no table is refused with a reason."""

from __future__ import annotations

import asyncio
import csv
import errno
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.web import csv_tables
from app.web.csv_tables import Columns, CsvTable, TableError, TableStore, json_line

QUESTION_ANSWER = Columns("q", "a")


def table(directory: Path, content: bytes) -> CsvTable:
    path = directory / "table"
    path.write_bytes(content)
    return CsvTable("table-1", "owner", "t.csv", len(content), path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_that_of_the_header(tmp_path: Path, delimiter: str) -> None:
    content = f"q{delimiter}a{delimiter}note\nWhy?{delimiter}Because.{delimiter}\n"
    (example,) = table(tmp_path, content.encode()).examples(QUESTION_ANSWER)
    assert [message["content"] for message in example["messages"]] == ["Why?", "Because."]


def test_a_system_column_comes_first_where_it_has_text(tmp_path: Path) -> None:
    rows = table(tmp_path, b"q,a,s\n1,2,Be brief.\n3,4,\n").examples(Columns("q", "a", "s"))
    assert [[message["role"] for message in row["messages"]] for row in rows] == [
        ["system", "user", "assistant"],
        ["user", "assistant"],
    ]


def test_rows_without_question_or_answer_are_left_out(tmp_path: Path) -> None:
    assert len(list(table(tmp_path, b"q,a\n,2\n1,\n \n1,2\n".replace(b" \n", b"")).examples(QUESTION_ANSWER))) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "The file is empty"),
        (b"PK\x03\x04\0\0", "Save the sheet as CSV"),
        ("q,a\nä,b\n".encode("latin-1"), "not UTF-8"),
        (b"q,a\n1,2,3\n", "Row 2 has 3 fields, but the header has 2 columns"),
        (b"q,q\n1,2\n", "Two columns have the name 'q'"),
        (b"question / answer\n1\n", "one column, 'question / answer'"),
    ],
)
def test_what_is_no_table_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    broken = table(tmp_path, content)
    with pytest.raises(TableError, match=reason):
        list(broken.examples(Columns(*broken.header()[:2])))


@pytest.mark.parametrize(
    "content",
    [
        b"q,a,,\n1,2,,\n",
        b'"a; b","q;",q,a\n-,-,1,2\n',
        b'"q";a;"x,y,z,"\n1;2;3\n',
    ],
)
def test_what_a_spreadsheet_exports_is_a_table(tmp_path: Path, content: bytes) -> None:
    """With delimiters behind the last column, and with other delimiters in quotes."""
    (example,) = table(tmp_path, content).examples(QUESTION_ANSWER)
    assert [message["content"] for message in example["messages"]] == ["1", "2"]


def test_a_table_that_another_tab_converted_has_expired(tmp_path: Path) -> None:
    gone = table(tmp_path, b"q,a\n1,2\n")
    gone.path.unlink()
    with pytest.raises(TableError, match="has expired"):
        next(gone.examples(QUESTION_ANSWER))


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), max_size=5))
def test_every_cell_survives_the_conversion(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    rows = [(q, a) for q, a in rows if q.strip() and a.strip() and "\0" not in q + a]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([("q", "a"), *rows])
    content = text.getvalue().encode("utf-8", "surrogatepass")
    if any("\ud800" <= character <= "\udfff" for pair in rows for character in "".join(pair)):
        return
    found = list(table(tmp_path, content).examples(QUESTION_ANSWER))
    assert [tuple(message["content"] for message in one["messages"]) for one in found] == rows
    assert all(json_line(one).count(b"\n") == 1 for one in found)


def test_a_table_belongs_to_its_session() -> None:
    store = TableStore()
    created = store.create("owner", "a.csv", 3)
    created.append(b"abc")
    assert store.get("owner", created.id) is created
    with pytest.raises(TableError):
        store.get("other", created.id)
    store.discard(created)
    with pytest.raises(TableError):
        store.get("owner", created.id)
    store.close()


def test_a_table_above_the_limit_is_refused_before_a_byte_is_sent() -> None:
    store = TableStore()
    with pytest.raises(TableError, match="2,147,483,648"):
        store.create("owner", "a.csv", (2 << 30) + 1)
    store.close()


def test_the_tables_of_a_session_have_one_limit_and_end_with_it() -> None:
    store = TableStore()
    first = store.create("owner", "a.csv", 1 << 30)
    with pytest.raises(TableError, match="2,147,483,648"):
        store.create("owner", "b.csv", (1 << 30) + 1)
    other = store.create("other", "b.csv", 3)
    store.discard_of("owner")
    assert not first.path.exists()
    assert other.path.exists()
    store.close()


def test_a_table_that_the_disk_cannot_hold_is_refused_before_a_byte_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that other tables are about to receive are not free."""
    monkeypatch.setattr(csv_tables.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    store = TableStore()
    store.create("owner", "a.csv", 60).append(b"x" * 20)
    with pytest.raises(OSError, match="61 bytes are needed, 60 are free") as raised:
        store.create("other", "b.csv", 61)
    assert raised.value.errno == errno.ENOSPC
    store.create("other", "b.csv", 60)
    store.close()


def test_an_old_table_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_tables, "CLEANUP_SECONDS", 0)
    monkeypatch.setattr(csv_tables, "KEEP_SECONDS", -1)
    store = TableStore()
    old = store.create("owner", "a.csv", 3)

    async def clean_up() -> None:
        task = asyncio.create_task(store.forget_old())
        while old.path.exists():
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(clean_up())
    assert not old.path.exists()
    store.close()
