"""docs/operate/deploy.md as something to run: its fenced blocks."""

from __future__ import annotations

import re
from pathlib import Path

FILE = Path(__file__).parents[3] / "docs" / "operate" / "deploy.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text() -> str:
    return FILE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(text()) if found == language]


def shell_block(containing: str) -> str:
    """The one block of shell lines with these words in it."""
    found = [block for block in blocks("sh") if containing in block]
    assert len(found) == 1, f"{len(found)} blocks of docs/operate/deploy.md contain {containing!r}"
    return found[0]
