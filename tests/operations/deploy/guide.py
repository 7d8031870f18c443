"""The fenced blocks of docs/operate/deploy.md and docs/guides/several-gpus.md, to run."""

from __future__ import annotations

import re
from pathlib import Path

FILE = Path(__file__).parents[3] / "docs" / "operate" / "deploy.md"
SEVERAL_GPUS = FILE.parents[1] / "guides" / "several-gpus.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str, page: Path = FILE) -> list[str]:
    return [body for found, body in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def shell_block(containing: str) -> str:
    """The one block of shell lines with these words in it."""
    found = [block for block in blocks("sh") if containing in block]
    assert len(found) == 1, f"{len(found)} blocks of docs/operate/deploy.md contain {containing!r}"
    return found[0]
