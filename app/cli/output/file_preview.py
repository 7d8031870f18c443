"""What an upload would make of a table or of JSON lines: rows, labels, and the first chats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from app.domain.error_text.json_text import counted, printable

if TYPE_CHECKING:
    from app.system.table_files import Preview

MAX_LABELS_SHOWN, MAX_TEXT_CHARACTERS = 20, 300


def preview_lines(preview: Preview) -> Iterator[str]:
    if columns := preview.columns:
        system = f", {columns.system} -> system" if columns.system else ""
        header = "has the names" if columns.has_header else "is an example"
        roles = f"{columns.input} -> user, {columns.output} -> assistant{system}"
        yield printable(f"Columns: {roles}. The first row {header} (else: --columns).")
    if prepared := preview.prepared:
        held_out = f", {prepared.held_out_rows:,} of them held out" if prepared.held_out_rows else ""
        skipped = f"; {counted(prepared.skipped_rows, 'row')} without input or output left out"
        yield f"{counted(prepared.rows, 'row')}{held_out}{skipped if prepared.skipped_rows else ''}."
        for label, rows in list((prepared.labels or {}).items())[:MAX_LABELS_SHOWN]:
            kept = f"  ({rows['held_out']:,} held out)" if held_out else ""
            yield f"  {sum(rows.values()):>7,}  {_short(label)}{kept}"
        if (more := len(prepared.labels or {}) - MAX_LABELS_SHOWN) > 0:
            yield f"  and {counted(more, 'more label')}"
    for example in preview.examples:
        yield ""
        yield from (f"{name}: {_short(text)}" for name, text in _texts(example))


def _texts(example: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in example.items():
        messages = value if name == "messages" and isinstance(value, list) else None
        if messages is None:
            yield name, value
        for message in messages or ():
            is_object = isinstance(message, dict)
            yield (str(message.get("role")), message.get("content")) if is_object else (name, message)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return printable(text if len(text) <= MAX_TEXT_CHARACTERS else f"{text[:MAX_TEXT_CHARACTERS]}…")
