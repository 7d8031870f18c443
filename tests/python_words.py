"""Find words of Python, such as None and dict, which no message of a JSON API may contain."""

from __future__ import annotations

import re

WORDS = re.compile(
    r"\b(True|False|None|NoneType|Dictionary|dict|str|bool|tuple|class|instance|Input should|after validation|"
    r"Traceback|Error:|pydantic|valid (?:integer|string|number|list|dictionary|boolean|tuple))\b"
    r"|[\[{] ?'|'[\]}]|': |', '|\bat at\b"
)


def python_words(message: str) -> list[str]:
    """Return the words of Python in `message`, and the representations of Python containers."""
    return [match.group() for match in WORDS.finditer(message)]
