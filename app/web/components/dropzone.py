"""The area into which files are dropped; app.web.uploads receives their pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui.element import Element


class Dropzone(Element, component="dropzone.js"):
    """`on_uploaded` gets the result of each complete file: {file_id, filename} or {table_id, filename}."""

    def __init__(self, label: str, hint: str, accept: str, on_uploaded: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self._props["label"] = label
        self._props["hint"] = hint
        self._props["accept"] = accept
        self.on("uploaded", lambda event: on_uploaded(dict(event.args)))
