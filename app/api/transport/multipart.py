"""Streaming parser of multipart/form-data: fields in any order, one file that is never held in memory.

FastAPI's own UploadFile would spool the whole body to disk before authentication.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.api.transport.upload_io import IoPools, rebatch
from app.domain.error_text.json_text import as_json
from app.domain.error_text.unknown_names import suggestion
from app.errors import BadRequest, UnknownParameter

MAX_FIELD_BYTES = 64 << 10
MAX_FIELDS = 32
MAX_BOUNDARY_BYTES = 256  # the parser's limit; the standard has 70
MAX_FORM_OVERHEAD_BYTES = 64 << 10  # of a body beside its file, for an early refusal by Content-Length


@dataclass
class Form:
    """The text fields of a body, and the client's name for the file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    has_file: bool = False


async def read_form(
    io_pools: IoPools,
    content_type: str,
    body: AsyncIterator[bytes],
    file_field: str,
    fields: Collection[str],
    write: Callable[[memoryview], None],
) -> Form:
    """Pass the part named `file_field` to `write`, in a thread, and return the other fields.

    Raises BadRequest for anything but a complete body with that file and `fields`, and whatever `write` raises.
    """
    reader = _FormReader(_boundary(content_type), file_field, fields, write)
    async for batch in rebatch(body):
        await io_pools.write(reader.feed, batch)
    return reader.finish()


class _FormReader:
    def __init__(
        self, boundary: bytes, file_field: str, fields: Collection[str], write: Callable[[memoryview], None]
    ) -> None:
        self.form = Form()
        self._file_field = file_field
        self._allowed_fields = fields
        self._write = write
        self._is_complete = False
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._part_name = ""
        self._part_value = bytearray()
        self._parser = MultipartParser(boundary, self._callbacks())

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BadRequest(f"The multipart body is malformed: {error}.", code="invalid_multipart") from error

    def finish(self) -> Form:
        """The parsed form. Raises BadRequest for a truncated body, which has no closing boundary."""
        if not self._is_complete:
            raise BadRequest(
                "The multipart body ends before its closing boundary: the upload was interrupted.",
                code="invalid_multipart",
            )
        return self.form

    def _callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._part_value.clear()

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part_name = _text(options.get(b"name", b""))
        if self._part_name == self._file_field:
            self._begin_file(options.get(b"filename"))
        elif self._part_name not in self._allowed_fields:
            allowed = [self._file_field, *sorted(self._allowed_fields)]
            seen = as_json(self._part_name) + suggestion(self._part_name, allowed)
            raise UnknownParameter(f"unknown form field {seen}; known here: {', '.join(allowed)}", self._part_name)
        elif self._part_name in self.form.fields or len(self.form.fields) >= MAX_FIELDS:
            raise BadRequest(f"{self._part_name}: the form has this field twice; give it once", self._part_name)

    def _begin_file(self, filename: bytes | None) -> None:
        if self.form.has_file:
            raise BadRequest(f"{self._file_field}: the form has two files; send one file per upload", self._file_field)
        self.form.has_file = True
        self.form.filename = None if filename is None else _text(filename)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part_name == self._file_field:
            self._write(memoryview(data)[start:end])
            return
        self._part_value += data[start:end]
        if len(self._part_value) > MAX_FIELD_BYTES:
            raise BadRequest(f"{self._part_name}: longer than {MAX_FIELD_BYTES:,} bytes", self._part_name)

    def _on_part_end(self) -> None:
        if self._part_name == self._file_field:
            return
        text = _text(bytes(self._part_value))
        if "\x00" in text:
            raise BadRequest(f"{self._part_name}: contains a NUL character", self._part_name)
        self.form.fields[self._part_name] = text

    def _on_end(self) -> None:
        self._is_complete = True


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary: bytes = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= MAX_BOUNDARY_BYTES:
        raise BadRequest(
            f"Send the file as multipart/form-data with a boundary (curl -F does), not {as_json(content_type, 100)}.",
            code="invalid_multipart",
        )
    return boundary


def _text(data: bytes) -> str:
    """Decode UTF-8, else Latin-1, which a few clients send."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
