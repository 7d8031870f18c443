"""CSV files become chat examples; what is no table, or has no place, is refused with a reason."""

from __future__ import annotations

import asyncio
import csv
import errno
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.web import csv_tables
from app.web.csv_tables import MAX_TABLE_BYTES, Columns, CsvTable, TableError, TableStore, json_line
from tests.sentences import Reviewed

QUESTION_ANSWER = Columns("q", "a")
NO_TABLES = {
    "empty": b"",
    "binary": b"PK\x03\x04\0\0",
    "not UTF-8": "q,a\nä,b\n".encode("latin-1"),
    "too many fields": b"q,a\n1,2,3\n",
    "repeated name": b"q,q\n1,2\n",
    "one column": b"question / answer\n1\n",
}


@pytest.fixture
def store() -> Iterator[TableStore]:
    store = TableStore()
    yield store
    store.close()


def table(directory: Path, content: bytes) -> CsvTable:
    path = directory / "table"
    path.write_bytes(content)
    return CsvTable("table-1", "owner", "t.csv", len(content), path)


def texts(directory: Path, content: bytes) -> list[list[str]]:
    examples = table(directory, content).examples(QUESTION_ANSWER)
    return [[message["content"] for message in example["messages"]] for example in examples]


@pytest.mark.parametrize(
    "content",
    [
        b"q,a,note\n1,2,\n",
        b"q;a;note\n1;2;\n",
        b"q\ta\tnote\n1\t2\t\n",
        b"q|a|note\n1|2|\n",
        b"q,a,,\n1,2,,\n",  # spreadsheets write delimiters behind the last column
        b'"a; b","q;",q,a\n-,-,1,2\n',
        b'"q";a;"x,y,z,"\n1;2;3\n',
        b"q,a\n,2\n1,\n\n1,2\n",  # rows without a question or an answer are left out
    ],
)
def test_the_delimiter_is_that_of_the_header(tmp_path: Path, content: bytes) -> None:
    assert texts(tmp_path, content) == [["1", "2"]]


def test_a_system_column_comes_first_where_it_has_text(tmp_path: Path) -> None:
    rows = table(tmp_path, b"q,a,s\n1,2,Be brief.\n3,4,\n").examples(Columns("q", "a", "s"))
    roles = [[message["role"] for message in row["messages"]] for row in rows]
    assert roles == [["system", "user", "assistant"], ["user", "assistant"]]


def test_a_file_that_is_no_table_is_refused_with_the_reason(tmp_path: Path, reviewed: Reviewed) -> None:
    for name, content in NO_TABLES.items():
        broken = table(tmp_path, content)
        with pytest.raises(TableError) as raised:
            list(broken.examples(Columns(*broken.header()[:2])))
        reviewed(f"{name}: {raised.value}")


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), max_size=5))
def test_every_cell_survives_the_conversion(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    rows = [(q, a) for q, a in rows if q.strip() and a.strip() and "\0" not in q + a]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("q", "a"), *rows])
    if any("\ud800" <= character <= "\udfff" for pair in rows for character in "".join(pair)):
        return
    found = list(table(tmp_path, text.getvalue().encode()).examples(QUESTION_ANSWER))
    assert [tuple(message["content"] for message in one["messages"]) for one in found] == rows
    assert all(json_line(one).count(b"\n") == 1 for one in found)


def test_a_table_belongs_to_its_session_and_ends_with_it(store: TableStore) -> None:
    own, other = store.create("owner", "a.csv", 3), store.create("other", "b.csv", 3)
    own.append(b"abc")
    assert store.get("owner", own.id) is own
    with pytest.raises(TableError):
        store.get("other", own.id)
    store.discard_of("owner")
    assert (own.path.exists(), other.path.exists()) == (False, True)
    with pytest.raises(TableError):
        store.get("owner", own.id)
    with pytest.raises(TableError):  # in another tab, whose table was converted here
        next(own.examples(QUESTION_ANSWER))


@pytest.mark.parametrize("sizes", [(MAX_TABLE_BYTES + 1,), (1 << 30, (1 << 30) + 1)])
def test_the_tables_of_a_session_have_one_limit(store: TableStore, sizes: tuple[int, ...]) -> None:
    *allowed, last = sizes
    for size in allowed:
        store.create("owner", "a.csv", size)
    with pytest.raises(TableError) as raised:
        store.create("owner", "b.csv", last)
    assert f"{MAX_TABLE_BYTES:,}" in raised.value.message


def test_a_table_that_the_disk_cannot_hold_is_refused(store: TableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that other tables are about to receive are not free."""
    monkeypatch.setattr(csv_tables.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    store.create("owner", "a.csv", 60).append(b"x" * 20)
    with pytest.raises(OSError, match="61 bytes") as raised:
        store.create("other", "b.csv", 61)
    assert raised.value.errno == errno.ENOSPC
    store.create("other", "b.csv", 60)


def test_an_old_table_is_deleted(store: TableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_tables, "CLEANUP_SECONDS", 0)
    monkeypatch.setattr(csv_tables, "KEEP_SECONDS", -1)
    old = store.create("owner", "a.csv", 3)

    async def clean_up() -> None:
        task = asyncio.create_task(store.forget_old())
        while old.path.exists():
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(clean_up())
