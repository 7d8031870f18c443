"""The text of an example as the model sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nicegui.element import Element

from app.web.formatting import clean_lines

SPECIAL = re.compile(r"<\|[A-Za-z0-9_./-]{1,40}\|>|</?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[/?INST\]")
MAX_SEGMENT_CHARACTERS = 20_000


class TokenView(Element, component="token_view.js"):
    """`segments` are those of a report's preview: text, and whether it is trained."""

    def __init__(self, segments: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        texts = [clean_lines(segment["text"], MAX_SEGMENT_CHARACTERS) for segment in segments]
        self._props["segments"] = [
            {"text": text, "trained": segment["trained"], "cut": segment.get("cut", False)}
            for text, segment in zip(texts, segments, strict=True)
        ]
        self._props["special"] = sorted({match for text in texts for match in SPECIAL.findall(text)})
