"""7: big files in parts, as the client's own helper sends them and as scripts do it by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from material import chats, lines
from world import MAJOR, counting, need_route

DEFAULT_PART_BYTES = 64 << 20
DATA = lines(chats(60))


@pytest.fixture(autouse=True)
def _uploads_are_there() -> None:
    need_route("POST /v1/uploads")


def begin(client: openai.OpenAI, size: int, **more: Any) -> Any:
    return client.uploads.create(
        **{"bytes": size, "filename": "big.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune", **more}
    )


def send(client: openai.OpenAI, upload_id: str, data: bytes) -> str:
    return client.uploads.parts.create(upload_id=upload_id, data=data).id


def refused(ask: Callable[[], object]) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        ask()
    assert caught.value.message
    return caught.value


def test_the_helper_sends_three_parts_and_the_file_equals_its_source(client: openai.OpenAI) -> None:
    done = client.uploads.upload_file_chunked(
        file=DATA,
        filename="big.jsonl",
        bytes=len(DATA),
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=len(DATA) // 3 + 1,
        md5=hashlib.md5(DATA).hexdigest(),
    )
    assert (done.object, done.status, done.bytes) == ("upload", "completed", len(DATA))
    assert done.file
    assert (done.file.filename, done.file.bytes, done.file.purpose) == ("big.jsonl", len(DATA), "fine-tune")
    assert client.files.content(done.file.id).read() == DATA


@pytest.mark.filterwarnings(  # 1.x leaves the file that it opened to the garbage collector
    *(["ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"] if MAJOR == 1 else [])
)
def test_a_file_above_the_default_part_size_goes_up_from_a_path(default: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    block = bytes(range(256)) * 4096
    with path.open("wb") as file:
        for _ in range(65):
            file.write(block)
        file.write(b"end")
    assert path.stat().st_size > DEFAULT_PART_BYTES
    done = default.uploads.upload_file_chunked(file=path, mime_type="application/octet-stream", purpose="user_data")
    assert done.file
    digest = hashlib.sha256()
    with default.files.with_streaming_response.content(done.file.id) as answer:
        for chunk in answer.iter_bytes(1 << 20):
            digest.update(chunk)
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()
    default.files.delete(done.file.id)


def test_parts_go_up_in_parallel_and_the_list_of_ids_decides_their_order(client: openai.OpenAI) -> None:
    pieces = [DATA[:500], DATA[500:900], DATA[900:]]
    upload = begin(client, len(DATA))
    assert (upload.status, upload.file, upload.bytes) == ("pending", None, len(DATA))
    assert upload.expires_at > upload.created_at
    send(client, upload.id, b"a retried part that is not listed")
    with ThreadPoolExecutor(3) as threads:
        ids = list(threads.map(lambda piece: send(client, upload.id, piece), reversed(pieces)))
    done = client.uploads.complete(upload.id, part_ids=ids[::-1])
    assert done.file
    assert client.files.content(done.file.id).read() == DATA


def test_a_wrong_total_is_refused(client: openai.OpenAI) -> None:
    short = begin(client, len(DATA) + 1)
    part = send(client, short.id, DATA)
    refused(lambda: client.uploads.complete(short.id, part_ids=[part]))


def test_nothing_goes_on_after_a_cancel_in_one_request_each(client: openai.OpenAI) -> None:
    upload = begin(client, 1)
    part = send(client, upload.id, b"x")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    seen: list[str] = []
    with counting(seen) as counted:
        refused(lambda: send(counted, upload.id, b"y"))
        refused(lambda: counted.uploads.complete(upload.id, part_ids=[part]))
    assert len(seen) == 2


def test_a_file_without_a_byte_is_taken_or_refused_but_never_hangs(client: openai.OpenAI) -> None:
    done = client.uploads.upload_file_chunked(
        file=b"", filename="empty.bin", bytes=0, mime_type="application/octet-stream", purpose="user_data"
    )
    assert done.status == "completed"
    assert done.file
    assert client.files.content(done.file.id).read() == b""
