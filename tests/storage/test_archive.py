"""Archives that are assembled from stored objects, in a directory and in a bucket."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.storage import ArchiveMember, Storage, open_archive
from tests.archives import tar_bytes
from tests.factories import put_bytes

CONTENTS = {"README.md": b"# a", "adapter_config.json": b"", "adapter_model.safetensors": bytes(range(256)) * 20}


@pytest.fixture
def members(storage: Storage) -> list[ArchiveMember]:
    for name, content in CONTENTS.items():
        put_bytes(storage, f"jobs/1/{name}", content)
    return [ArchiveMember(name, f"jobs/1/{name}", len(content)) for name, content in sorted(CONTENTS.items())]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.data())
def test_every_range_is_that_of_the_whole(storage: Storage, members: list[ArchiveMember], data: st.DataObject) -> None:
    whole = tar_bytes(CONTENTS)
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole)))
    with open_archive(storage, members) as archive:
        assert archive.seek(start) == start
        assert archive.read(length) == whole[start : start + length]


def test_a_missing_object_is_named_when_the_archive_is_opened(storage: Storage, members: list[ArchiveMember]) -> None:
    storage.delete(members[1].key)
    with pytest.raises(FileNotFoundError) as missing:
        open_archive(storage, members)
    assert missing.value.filename == members[1].key


def test_an_object_that_is_shorter_than_its_row_is_an_error(storage: Storage, members: list[ArchiveMember]) -> None:
    longer = [ArchiveMember(each.name, each.key, each.size_bytes + 1) for each in members]
    with open_archive(storage, longer) as archive, pytest.raises(OSError, match="shorter than"):
        archive.read()
