"""One suite for every storage: its operations, and the same builtin errors from each."""

from __future__ import annotations

import hashlib
import io
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.storage import DownloadHeaders, Storage

LARGE_BYTES = 18_000_000  # more than one part of a multipart upload


def staged(storage: Storage, content: bytes = b"hello") -> Path:
    path = storage.staging / "incoming"
    path.write_bytes(content)
    return path


def test_what_was_put_is_read_back_and_its_source_is_removed(storage: Storage) -> None:
    source = staged(storage)
    assert storage.put("files/file-1", source).size_bytes == 5
    with storage.open("files/file-1") as file:
        assert file.read() == b"hello"
        file.seek(1)
        assert file.read() == b"ello"
    assert not source.exists()


@pytest.mark.parametrize("verb", ["open", "stat"])
def test_an_unknown_key_is_a_file_not_found_error_with_the_key_in_it(storage: Storage, verb: str) -> None:
    with pytest.raises(FileNotFoundError, match="files/none"):
        getattr(storage, verb)("files/none")


def test_deleting_twice_is_deleting_once(storage: Storage) -> None:
    storage.put("k", staged(storage))
    storage.delete("k")
    storage.delete("k")
    with pytest.raises(FileNotFoundError):
        storage.stat("k")


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.x", "a\x00b", "a b", "ü"]
)
def test_a_key_that_could_leave_the_root_is_refused(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError, match="a storage key"):
        storage.open(key)


def test_an_empty_object_is_read_as_nothing(storage: Storage) -> None:
    assert storage.put("k", staged(storage, b"")).size_bytes == 0
    with storage.open("k") as file:
        assert file.read() == b""
        assert file.seek(0, io.SEEK_END) == 0


def test_a_large_object_is_read_from_any_position(storage: Storage) -> None:
    content = random.Random(7).randbytes(LARGE_BYTES)
    assert storage.put("k", staged(storage, content)).size_bytes == LARGE_BYTES
    with storage.open("k") as file:
        for position in (0, 1, 5 << 20, LARGE_BYTES - 1, 17):
            file.seek(position)
            assert file.read(1000) == content[position : position + 1000]
        file.seek(0)
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(content).digest()


def test_the_check_leaves_nothing(storage: Storage) -> None:
    for size_bytes in (1, 100_000, LARGE_BYTES):
        storage.check(size_bytes)
    assert list(storage.older_than("probes", time.time() + 60)) == []
    assert list(storage.staging.iterdir()) == []


def test_the_api_sends_objects_itself_unless_redirects_are_set(storage: Storage) -> None:
    assert storage.download_url("k", DownloadHeaders("text/plain", "attachment")) is None


class TestCompose:
    PARTS = (b"first,", b"", b"second,", b"third")

    @pytest.fixture
    def parts(self, storage: Storage) -> list[str]:
        for number, content in enumerate(self.PARTS):
            storage.put(f"uploads/u/part-{number}", staged(storage, content))
        return [f"uploads/u/part-{number}" for number in range(len(self.PARTS))]

    def test_an_object_has_its_parts_in_the_given_order_that_outlives_its_parts(
        self, storage: Storage, parts: list[str]
    ) -> None:
        order = [parts[3], parts[0], parts[1], parts[2]]
        assert storage.compose("files/f", order).size_bytes == 18
        for part in parts:
            storage.delete(part)
        assert storage.stat("files/f").size_bytes == 18
        with storage.open("files/f") as file:
            assert file.read() == b"thirdfirst,second,"

    def test_a_missing_part_is_named_and_leaves_nothing(self, storage: Storage, parts: list[str]) -> None:
        for keys in ([parts[0], "uploads/u/gone"], ["uploads/u/gone"]):
            with pytest.raises(FileNotFoundError, match="uploads/u/gone"):
                storage.compose("files/f", keys)
        with pytest.raises(FileNotFoundError, match="files/f"):
            storage.stat("files/f")
        assert list(storage.staging.iterdir()) == []

    def test_a_composed_object_is_deleted_whole_and_twice(self, storage: Storage, parts: list[str]) -> None:
        storage.compose("files/f", parts)
        storage.delete("files/f")
        storage.delete("files/f")
        for verb in (storage.stat, storage.open):
            with pytest.raises(FileNotFoundError, match="files/f"):
                verb("files/f")
        assert list(storage.staging.iterdir()) == []

    def test_parts_above_and_below_the_minimum_of_s3_are_composed(self, storage: Storage) -> None:
        large = [random.Random(seed).randbytes(6 << 20) for seed in (1, 2)]
        contents = {"a": b"small", "b": large[0], "c": b"", "d": large[1], "e": b"end"}
        for name, content in contents.items():
            storage.put(f"uploads/u/{name}", staged(storage, content))
        for order in ("bde", "abcde", "edcba", "db"):
            whole = b"".join(contents[name] for name in order)
            assert storage.compose(f"files/{order}", [f"uploads/u/{name}" for name in order]).size_bytes == len(whole)
            with storage.open(f"files/{order}") as file:
                assert file.read() == whole
        assert list(storage.staging.iterdir()) == []

    @given(
        contents=st.lists(st.binary(max_size=9), max_size=5),
        reads=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=6),
    )
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_an_object_of_parts_reads_like_one_file(
        self, storage: Storage, contents: list[bytes], reads: list[tuple[int, int]]
    ) -> None:
        keys = [f"parts/{number}" for number in range(len(contents))]
        for key, content in zip(keys, contents, strict=True):
            storage.put(key, staged(storage, content))
        storage.compose("whole", keys)
        with storage.open("whole") as file:
            plain = io.BytesIO(b"".join(contents))
            for start, size in reads:
                assert (file.seek(start), file.read(size)) == (plain.seek(start), plain.read(size))
            assert file.seek(0, io.SEEK_END) == plain.seek(0, io.SEEK_END)
        storage.delete("whole")


class TestOlderThan:
    def test_the_list_has_what_was_stored_before_a_moment_below_a_prefix(self, storage: Storage) -> None:
        for key in ("files/a", "files/b", "jobs/j/snapshots/s", "uploads/u/p"):
            source = staged(storage)
            os.utime(source, (1, 1))  # written long ago: what counts is when it was stored
            storage.put(key, source)
        storage.compose("files/whole", ["files/a", "files/b"])
        later, earlier = time.time() + 10, time.time() - 1000
        assert sorted(storage.older_than("files", later)) == ["files/a", "files/b", "files/whole"]
        assert list(storage.older_than("jobs", later)) == ["jobs/j/snapshots/s"]
        assert list(storage.older_than("files", earlier)) == []
        assert list(storage.older_than("nothing", later)) == []
