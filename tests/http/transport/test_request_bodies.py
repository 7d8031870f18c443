from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.api.transport.request_bodies import MAX_FIELD_BYTES, Form, IoPools, read_form
from app.errors import BadRequest

CONTENT_TYPE = "multipart/form-data; boundary=XX"
FIELDS = ("purpose", "note")


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    return b"--XX\r\n" + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


END = b"--XX--\r\n"


def read(body: bytes, chunk_bytes: int = 1 << 20, content_type: str = CONTENT_TYPE) -> tuple[Form, bytes]:
    written = bytearray()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), chunk_bytes):
            yield body[start : start + chunk_bytes]

    return asyncio.run(read_form(IoPools(), content_type, chunks(), "file", FIELDS, written.extend)), bytes(written)


class TestReadForm:
    def test_takes_the_file_before_or_after_the_fields(self) -> None:
        file, field = part("file", b"bytes", "a.jsonl"), part("purpose", b"fine-tune")
        for body in (file + field + END, field + file + END):
            form, written = read(body)
            assert (form.fields, form.filename, written) == ({"purpose": "fine-tune"}, "a.jsonl", b"bytes")

    @pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7])
    def test_does_not_care_where_the_network_cuts_the_body(self, chunk_bytes: int) -> None:
        tricky = b"\r\n--X\r\n--XY\r\n\r\n--"
        body = part("purpose", b"batch") + part("file", tricky, "b") + END
        form, written = read(body, chunk_bytes)
        assert (form.fields, written) == ({"purpose": "batch"}, tricky)

    def test_takes_a_file_without_a_name(self) -> None:
        form, written = read(part("file", b"x") + END)
        assert (form.has_file, form.filename, written) == (True, None, b"x")

    def test_reads_names_in_utf_8_and_in_latin_1(self) -> None:
        body = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n\r\n' + END
        assert read(body % "größe.jsonl".encode())[0].filename == "größe.jsonl"
        assert read(body % "größe.jsonl".encode("latin-1"))[0].filename == "größe.jsonl"

    def test_refuses_a_body_without_its_end(self) -> None:
        for cut in (b"", part("file", b"half")[:-5], part("file", b"half")):
            with pytest.raises(BadRequest, match="interrupted"):
                read(cut)

    def test_refuses_a_broken_body(self) -> None:
        with pytest.raises(BadRequest, match="malformed"):
            read(b"--YY\r\n\r\n--YY--")

    def test_refuses_another_content_type_and_says_what_to_send(self) -> None:
        for content_type in (
            "application/json",
            "multipart/form-data",
            "",
            "multipart/form-data; boundary=" + "x" * 999,
        ):
            with pytest.raises(BadRequest, match="multipart"):
                read(END, content_type=content_type)

    def test_refuses_a_second_file_and_a_second_value(self) -> None:
        with pytest.raises(BadRequest, match="has two"):
            read(part("file", b"a") + part("file", b"b") + END)
        with pytest.raises(BadRequest, match="twice"):
            read(part("note", b"a") + part("note", b"b") + END)

    def test_refuses_a_field_that_is_too_long_or_holds_nul(self) -> None:
        with pytest.raises(BadRequest, match="longer than"):
            read(part("note", b"a" * (MAX_FIELD_BYTES + 1)) + END)
        with pytest.raises(BadRequest, match="NUL"):
            read(part("note", b"a\x00b") + END)

    def test_lets_through_what_the_writer_raises(self) -> None:
        def refuse(_data: bytes) -> None:
            raise OSError(28, "No space left on device")

        async def chunks() -> AsyncIterator[bytes]:
            yield part("file", b"x") + END

        with pytest.raises(OSError, match="No space left"):
            asyncio.run(read_form(IoPools(), CONTENT_TYPE, chunks(), "file", FIELDS, refuse))
