"""multipart/form-data as a stream: fields in any order, one file that is never in memory, the end really seen.

FastAPI's own UploadFile would spool the whole body to disk before the key is looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.api.transport.upload_io import Lanes, batches
from app.errors import BadRequest, UnknownParameter

MAX_FIELD_BYTES = 64 << 10
MAX_FIELDS = 32
MAX_BOUNDARY_BYTES = 256  # what the parser takes; the standard says 70
ENVELOPE_BYTES = 64 << 10  # how much longer than its file a body may be, for an early refusal by Content-Length


@dataclass
class Form:
    """The text fields of a body, and what the client called the file in it."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    has_file: bool = False


async def read_form(
    lanes: Lanes,
    content_type: str,
    body: AsyncIterator[bytes],
    file_name: str,
    fields: Collection[str],
    write: Callable[[memoryview], None],
) -> Form:
    """Feed the part named `file_name` to `write`, in a thread, and return the rest.

    Raises BadRequest for anything but a complete body of that file and `fields`; whatever `write` raises comes through.
    """
    reader = _FormReader(_boundary(content_type), file_name, fields, write)
    async for batch in batches(body):
        await lanes.write(reader.feed, batch)
    return reader.finish()


class _FormReader:
    def __init__(
        self, boundary: bytes, file_name: str, fields: Collection[str], write: Callable[[memoryview], None]
    ) -> None:
        self.form = Form()
        self._file_name = file_name
        self._known = fields
        self._write = write
        self._complete = False
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        self._parser = MultipartParser(boundary, self._callbacks())

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BadRequest(f"The multipart body is broken: {error}.", code="invalid_multipart") from error

    def finish(self) -> Form:
        """A body that was cut in half has no closing boundary."""
        if not self._complete:
            raise BadRequest(
                "The multipart body ends before its closing boundary: the upload was cut off.", code="invalid_multipart"
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
        self._value.clear()

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = _text(options.get(b"name", b""))
        if self._name == self._file_name:
            self._begin_file(options.get(b"filename"))
        elif self._name not in self._known:
            known = ", ".join([self._file_name, *sorted(self._known)])
            raise UnknownParameter(f"unknown form field {self._name!r}; known here: {known}", self._name)
        elif self._name in self.form.fields or len(self.form.fields) >= MAX_FIELDS:
            raise BadRequest(f"{self._name}: the field stands twice in the form; give it once", self._name)

    def _begin_file(self, filename: bytes | None) -> None:
        if self.form.has_file:
            raise BadRequest(f"{self._file_name}: one file per upload; this form has two", self._file_name)
        self.form.has_file = True
        self.form.filename = None if filename is None else _text(filename)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._file_name:
            self._write(memoryview(data)[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise BadRequest(f"{self._name}: longer than {MAX_FIELD_BYTES:,} bytes", self._name)

    def _on_part_end(self) -> None:
        if self._name == self._file_name:
            return
        text = _text(bytes(self._value))
        if "\x00" in text:
            raise BadRequest(f"{self._name}: holds a NUL character", self._name)
        self.form.fields[self._name] = text

    def _on_end(self) -> None:
        self._complete = True


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary: bytes = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= MAX_BOUNDARY_BYTES:
        raise BadRequest(
            f"Send the file as multipart/form-data with a boundary (curl -F does), not as {content_type[:100]!r}.",
            code="invalid_multipart",
        )
    return boundary


def _text(data: bytes) -> str:
    """Clients send UTF-8 and, rarely, Latin-1; a name is worth keeping either way."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
