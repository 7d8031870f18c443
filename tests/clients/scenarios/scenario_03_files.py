"""3 to 6: files in every shape, what is refused, pages, deletion."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import openai
import pytest
from material import chats, lines

DATA = lines(chats(10))


def test_a_file_is_uploaded_in_every_shape_and_comes_back(client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(DATA)
    with path.open("rb") as opened:
        shapes: list[tuple[str, Any]] = [
            ("train.jsonl", opened),
            ("train.jsonl", path),
            ("upload", DATA),
            ("upload", io.BytesIO(DATA)),
            ("given.jsonl", ("given.jsonl", DATA, "application/jsonl")),
            ("größe 大.jsonl", ("größe 大.jsonl", DATA)),
        ]
        for filename, shape in shapes:
            file = client.files.create(file=shape, purpose="fine-tune")
            assert (file.filename, file.object, file.bytes) == (filename, "file", len(DATA))
            assert file.purpose == "fine-tune"
            assert client.files.wait_for_processing(file.id, poll_interval=0.1).status == "processed"
            assert client.files.content(file.id).read() == DATA


@pytest.mark.parametrize("seconds", [3600, 2_592_000])
def test_a_file_expires_at_the_requested_time(client: openai.OpenAI, seconds: int) -> None:
    file = client.files.create(
        file=b"x", purpose="user_data", expires_after={"anchor": "created_at", "seconds": seconds}
    )
    assert file.expires_at == file.created_at + seconds


def test_pages_give_every_file_once_in_order(client: openai.OpenAI) -> None:
    ids = [client.files.create(file=b"x", purpose="batch").id for _ in range(5)]
    assert [file.id for file in client.files.list(limit=2, order="asc", purpose="batch")] == ids
    assert [file.id for file in client.files.list(limit=2, order="desc", purpose="batch")] == ids[::-1]
    page = client.files.list(limit=2, order="asc", purpose="batch")
    assert page.has_next_page()
    assert page.data[-1].id == ids[1]
    for file_id in ids:
        assert client.files.delete(file_id).deleted
    assert list(client.files.list(purpose="batch")) == []


def test_a_deleted_file_is_a_404(client: openai.OpenAI) -> None:
    file = client.files.create(file=DATA, purpose="fine-tune")
    gone = client.files.delete(file.id)
    assert (gone.id, gone.object, gone.deleted) == (file.id, "file", True)
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(file.id)


def test_a_download_streams_and_goes_on_where_it_broke_off(client: openai.OpenAI, tmp_path: Path) -> None:
    content = bytes(range(256)) * 12_000
    file = client.files.create(file=content, purpose="user_data")
    with client.files.with_streaming_response.content(file.id) as answer:
        answer.stream_to_file(tmp_path / "whole")
        etag = answer.headers["etag"]
    assert hashlib.sha256((tmp_path / "whole").read_bytes()).digest() == hashlib.sha256(content).digest()
    had = content[:1_000_003]
    more = {"Range": f"bytes={len(had)}-", "If-Range": etag}
    assert had + client.files.content(file.id, extra_headers=more).read() == content
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.content(file.id, extra_headers={"Range": f"bytes={len(content)}-"})
    assert (caught.value.status_code, caught.value.code) == (416, "range_not_satisfiable")
