"""Messages for JSON syntax errors. The messages of Python's decoder are written for programmers of Python
("Invalid control character at", "Expecting property name enclosed in double quotes")."""

from __future__ import annotations

from json import JSONDecodeError

from app.domain.error_text.json_text import quoted

EXPECTED = {
    "Expecting value": "a value",
    "Expecting ':' delimiter": "a colon",
    "Expecting ',' delimiter": "a comma or a closing bracket",
    "Expecting property name enclosed in double quotes": "a key in double quotes",
    "Extra data": "the end of the text",
}
SHORT_ESCAPES = {"\b": r"\b", "\t": r"\t", "\n": r"\n", "\f": r"\f", "\r": r"\r"}  # RFC 8259, section 7
CONTROL_CHARACTER_NAMES = {
    "\x00": "NUL",
    "\b": "backspace",
    "\t": "tab",
    "\n": "line feed",
    "\f": "form feed",
    "\r": "carriage return",
}


def syntax_error_text(error: JSONDecodeError) -> str:
    """The unexpected and the expected characters, with the column, and the line if there are several."""
    where = f"column {error.colno}" if "\n" not in error.doc else f"line {error.lineno}, column {error.colno}"
    character = error.doc[error.pos : error.pos + 1]
    if error.msg in EXPECTED:
        found = quoted(character) if character else "the end of the text"
        return f"expected {EXPECTED[error.msg]}, found {found} at {where}"
    if error.msg.startswith("Invalid control character"):
        return f"{_control_character(character)} inside a string at {where}; {_remedy(character)}"
    if error.msg.startswith("Unterminated string"):
        return f"the string that begins at {where} has no closing quote"
    if error.msg.startswith("Invalid \\uXXXX"):
        return f"\\u without four hexadecimal digits at {where}"
    if error.msg.startswith("Invalid \\escape"):
        return f'a backslash at {where}; only " \\ / b f n r t and u may follow one, and \\\\ is the backslash itself'
    return f"{error.msg.removesuffix(' at')} at {where}"


def _control_character(character: str) -> str:
    name = CONTROL_CHARACTER_NAMES.get(character)
    return f"the control character U+{ord(character):04X}" + (f" ({name})" if name else "")


def _remedy(character: str) -> str:
    if character == "\x00":
        return "remove it"  # the escape \u0000 is refused too: PostgreSQL's text type cannot store it
    return f"write it as {SHORT_ESCAPES.get(character, f'{chr(92)}u{ord(character):04x}')}"
