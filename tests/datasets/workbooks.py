"""Workbooks and Parquet files of tests, also workbooks that unpack to far more than they have."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
RELATIONS = 'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"'
BLOCK_BYTES = 10 << 20


def workbook_members(rows: Iterable[Sequence[Any]]) -> dict[str, bytes]:
    """The members of a workbook: a hidden sheet, and one with these rows."""
    cells = "".join(f"<row>{''.join(map(_cell, row))}</row>" for row in rows)
    sheets = "".join(
        f'<sheet name="{name}" sheetId="{number}" state="{state}" r:id="r{number}"/>'
        for number, (name, state) in enumerate((("Notes", "hidden"), ("Data", "visible")), 1)
    )
    relations = (
        "".join(
            f'<Relationship Id="r{number}" Type="{OFFICE}/worksheet" Target="worksheets/sheet{number}.xml"/>'
            for number in (1, 2)
        )
        + f'<Relationship Id="r3" Type="{OFFICE}/sharedStrings" Target="sharedStrings.xml"/>'
    )
    root = f'<Relationship Id="r1" Type="{OFFICE}/officeDocument" Target="xl/workbook.xml"/>'
    texts = {
        "_rels/.rels": f"<Relationships {RELATIONS}>{root}</Relationships>",
        "xl/workbook.xml": f'<workbook {MAIN} xmlns:r="{OFFICE}"><sheets>{sheets}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f"<Relationships {RELATIONS}>{relations}</Relationships>",
        "xl/worksheets/sheet1.xml": f"<worksheet {MAIN}><sheetData/></worksheet>",
        "xl/worksheets/sheet2.xml": f"<worksheet {MAIN}><sheetData>{cells}</sheetData></worksheet>",
    }
    return {name: text.encode() for name, text in texts.items()}


def _cell(value: Any) -> str:
    if isinstance(value, int | float):
        return f"<c><v>{value}</v></c>"
    return f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>'


def zipped(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def write_bomb(path: Path, name: str, begin: bytes, blocks: int, members: int, stated_bytes: int | None = None) -> None:
    """Write a workbook with members that unpack to `begin` and blocks of 10 MiB of A, which are deflated only once.

    `stated_bytes` is the size that the archive states for each; None: the true one.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b"A" * BLOCK_BYTES) + packer.flush(zlib.Z_FULL_FLUSH)
    stream = first + block * blocks + b"\x03\x00"
    unpacked_bytes = len(begin) + blocks * BLOCK_BYTES if stated_bytes is None else stated_bytes
    path.write_bytes(zipped(workbook_members([("text", "label")])))
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(members):
            info = zipfile.ZipInfo(name if number == 0 else f"{number}{name}")
            info.compress_type, info.header_offset = zipfile.ZIP_DEFLATED, archive.start_dir
            info.file_size, info.compress_size, info.CRC = unpacked_bytes, len(stream), 0
            assert archive.fp is not None
            archive.fp.seek(archive.start_dir)
            header = info.FileHeader(zip64=False)
            archive.fp.write(header + stream)
            archive.start_dir = archive.fp.tell()
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
            archive._didModify = True  # type: ignore[attr-defined]
    assert struct.unpack("<I", path.read_bytes()[:4])[0] == 0x04034B50


def parquet(columns: Mapping[str, Sequence[Any]]) -> bytes:
    from arro3 import core
    from arro3 import io as arro3_io

    types = {str: core.DataType.utf8(), int: core.DataType.int64(), float: core.DataType.float64()}
    arrays: dict[str, Any] = {
        name: core.Array(values, types[type(next(value for value in values if value is not None))])
        for name, values in columns.items()
    }
    file = io.BytesIO()
    arro3_io.write_parquet(core.Table.from_pydict(arrays), file)
    return file.getvalue()
