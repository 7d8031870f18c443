"""Uploads by parts as the official client sends them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.contract.conftest import Connect
from tests.factories import chat_lines


class TestUploadFileChunked:
    def test_makes_a_file_that_equals_its_source(self, official: OpenAI, data_set: Path) -> None:
        content = data_set.read_bytes()
        size = len(content) // 3 + 1
        upload = official.uploads.upload_file_chunked(
            file=data_set, mime_type="application/jsonl", purpose="fine-tune", part_size=size,
            md5=hashlib.md5(content).hexdigest(),
        )  # fmt: skip
        assert (upload.status, upload.bytes, upload.filename) == ("completed", len(content), data_set.name)
        assert upload.file is not None
        assert official.files.content(upload.file.id).read() == content
        assert official.files.retrieve(upload.file.id).purpose == "fine-tune"

    def test_of_more_than_one_part_of_the_clients_own_size(self, connect: Connect, api_key: str) -> None:
        content = bytes(range(256)) * (65 << 12)  # 65 MiB: a whole part, and the beginning of another
        official = connect(api_key=api_key)
        upload = official.uploads.upload_file_chunked(
            file=content, filename="large.bin", bytes=len(content), mime_type="text/plain", purpose="user_data"
        )
        assert upload.file is not None
        assert upload.file.bytes == len(content)
        assert upload.file.sha256 == hashlib.sha256(content).hexdigest()  # type: ignore[attr-defined]
        header = {"Range": f"bytes={(64 << 20) - 5}-{(64 << 20) + 4}"}
        piece = official.files.content(upload.file.id, extra_headers=header).read()
        assert piece == content[(64 << 20) - 5 : (64 << 20) + 5]

    def test_of_nothing(self, official: OpenAI) -> None:
        upload = official.uploads.upload_file_chunked(
            file=b"", filename="empty.txt", bytes=0, mime_type="text/plain", purpose="user_data"
        )
        assert upload.file is not None
        assert (upload.file.bytes, official.files.content(upload.file.id).read()) == (0, b"")


class TestByHand:
    def test_parts_are_put_in_the_order_of_the_list(self, official: OpenAI) -> None:
        upload = official.uploads.create(filename="a.txt", purpose="batch", bytes=9, mime_type="text/plain")
        assert (upload.status, upload.file, upload.expires_at) == ("pending", None, upload.created_at + 3600)
        ids = [official.uploads.parts.create(upload.id, data=io.BytesIO(data)).id for data in (b"ghi", b"abc", b"def")]
        done = official.uploads.complete(upload.id, part_ids=[ids[1], ids[2], ids[0]])
        assert done.file is not None
        assert official.files.content(done.file.id).read() == b"abcdefghi"

    def test_what_is_wrong_is_a_bad_request_in_one_go(self, connect: Connect, api_key: str) -> None:
        """Retries are off in none of these calls: a 400 is not retried, so that nothing is sent twice."""
        official = connect(api_key=api_key)
        upload = official.uploads.create(filename="a.txt", purpose="batch", bytes=3, mime_type="text/plain")
        part = official.uploads.parts.create(upload.id, data=b"abc")
        with pytest.raises(openai.BadRequestError) as wrong:
            official.uploads.complete(upload.id, part_ids=[part.id], md5="0" * 32)
        assert (wrong.value.param, wrong.value.code) == ("md5", "md5_mismatch")
        with pytest.raises(openai.BadRequestError, match="declared with 3"):
            official.uploads.complete(upload.id, part_ids=[])
        assert official.uploads.cancel(upload.id).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="cancelled"):
            official.uploads.parts.create(upload.id, data=b"abc")
        with pytest.raises(openai.NotFoundError):
            official.uploads.cancel("upload_nothere")

    def test_a_data_set_is_checked(self, official: OpenAI) -> None:
        content = chat_lines(3) + b"oops\n"
        with pytest.raises(openai.BadRequestError, match="Line 4"):
            official.uploads.upload_file_chunked(
                file=content, filename="a.jsonl", bytes=len(content), mime_type="text/jsonl", purpose="fine-tune"
            )
