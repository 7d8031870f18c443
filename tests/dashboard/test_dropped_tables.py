"""Dropped tables that wait: each belongs to its session, and what has no place is refused."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from app.settings import MAX_FILE_BYTES
from app.web import dropped_tables
from app.web.dropped_tables import MAX_SESSION_BYTES, DroppedTableError, TableStore


@pytest.fixture
def store() -> Iterator[TableStore]:
    store = TableStore()
    yield store
    store.close()


def test_a_table_belongs_to_its_session_and_ends_with_it(store: TableStore) -> None:
    own, other = store.create("owner", "a.csv", 3), store.create("other", "b.csv", 3)
    own.append(b"abc")
    assert store.get("owner", own.id) is own
    with pytest.raises(DroppedTableError):
        store.get("other", own.id)
    store.discard_of("owner")
    assert (own.path.exists(), other.path.exists()) == (False, True)
    with pytest.raises(DroppedTableError):
        store.get("owner", own.id)


def test_a_table_has_the_limit_of_one_upload(store: TableStore) -> None:
    store.create("owner", "a.csv", MAX_FILE_BYTES)
    with pytest.raises(DroppedTableError) as raised:
        store.create("owner", "b.csv", MAX_FILE_BYTES + 1)
    assert f"{MAX_FILE_BYTES:,}" in raised.value.message


def test_the_tables_of_a_session_have_one_limit(store: TableStore) -> None:
    for _ in range(MAX_SESSION_BYTES // MAX_FILE_BYTES):
        store.create("owner", "a.csv", MAX_FILE_BYTES)
    with pytest.raises(DroppedTableError) as raised:
        store.create("owner", "b.csv", 1)
    assert f"{MAX_SESSION_BYTES:,}" in raised.value.message


def test_a_table_that_the_disk_cannot_hold_is_refused(store: TableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that other tables are about to receive are not free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    store.create("owner", "a.csv", 60).append(b"x" * 20)
    with pytest.raises(OSError, match="61 bytes") as raised:
        store.create("other", "b.csv", 61)
    assert raised.value.errno == errno.ENOSPC
    store.create("other", "b.csv", 60)


def test_an_old_table_is_deleted(store: TableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropped_tables, "CLEANUP_SECONDS", 0)
    monkeypatch.setattr(dropped_tables, "KEEP_SECONDS", -1)
    old = store.create("owner", "a.csv", 3)

    async def clean_up() -> None:
        task = asyncio.create_task(store.forget_old())
        while old.path.exists():
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(clean_up())
