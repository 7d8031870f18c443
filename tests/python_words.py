"""What no message of a JSON API may hold: words that mean something to Python alone."""

from __future__ import annotations

import re

WORDS = re.compile(
    r"\b(True|False|None|NoneType|Dictionary|dict|str|bool|tuple|class|instance|Input should|after validation|"
    r"Traceback|Error:|pydantic|valid (?:integer|string|number|list|dictionary|boolean|tuple))\b"
    r"|[\[{] ?'|'[\]}]|': |', '|\bat at\b"
)


def python_words(message: str) -> list[str]:
    """Those that stand in `message`; containers as Python writes them among them."""
    return [found.group() for found in WORDS.finditer(message)]
