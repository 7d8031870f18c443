"""The area into which files are dropped; app.web.uploads receives their pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui.element import Element


class Dropzone(Element, component="dropzone.js"):
    """`on_uploaded` gets the path of the page of a single complete file; several files get a link each."""

    def __init__(self, label: str, hint: str, accept: str, on_uploaded: Callable[[str], Any]) -> None:
        super().__init__()
        self._props["label"] = label
        self._props["hint"] = hint
        self._props["accept"] = accept
        self.on("uploaded", lambda event: on_uploaded(str(event.args)))
