"""The trained stretches of a document as text."""

from __future__ import annotations

from collections.abc import Iterator

from app.domain.datasets.documents import Document
from app.domain.datasets.render import Renderer


def trained_texts(renderer: Renderer, document: Document) -> Iterator[str]:
    stretch: list[int] = []
    for token, is_labelled in zip([*document.tokens, 0], [*document.labelled, False], strict=True):
        if is_labelled:
            stretch.append(token)
        elif stretch:
            yield str(renderer.tokenizer.decode(stretch, skip_special_tokens=False))
            stretch = []
