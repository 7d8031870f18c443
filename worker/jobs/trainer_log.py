"""The log of a trainer's standard error: bounded in size, printable, with secrets redacted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO

MAX_LOG_BYTES = 10 << 20  # two halves: a full one is renamed, so the newest lines are always kept
MAX_LINE_BYTES = 8 << 10
MAX_TAIL_LINES = 20

# ESC and NUL would reach the operator's terminal; keys and passwords would reach everybody who gets the log.
UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\xa0-\U0010ffff]")
# Each pattern begins with a literal: with a `\w+` in front, a line of 8 kB takes a second, which blocks the trainer.
SECRETS = (
    (re.compile(r"(tnry|hf|sk)[_-][A-Za-z0-9_-]{8,}"), r"\1_***"),
    (re.compile(r"(://[^\s:/@]{0,200}):[^\s@]{1,200}@"), r"\1:***@"),
    (re.compile(r"(?i)(authorization|password|secret)(\s*[=:]\s*)(?:bearer\s+)?[^\s,;]{6,}"), r"\1\2***"),
)


class TrainerLog:
    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._older_path = path.with_name(path.name + ".1")

    def copy_from(self, pipe: IO[bytes]) -> None:
        """Copy the pipe until end of file. On a full disk lines are lost, but the pipe is read, so nothing blocks."""
        try:
            while chunk := pipe.readline(MAX_LINE_BYTES):
                self._append(redact(chunk.decode("utf-8", errors="replace")))
        except ValueError:  # the pipe was closed during the read
            return

    def tail(self) -> str:
        """The last lines of the log."""
        try:
            return "\n".join(self.path.read_text(encoding="utf-8", errors="replace").splitlines()[-MAX_TAIL_LINES:])
        except OSError:
            return ""

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                is_full = file.tell() > self.max_bytes // 2
            if is_full:
                self.path.replace(self._older_path)
        except OSError:
            return


def redact(text: str) -> str:
    """Replace unprintable characters and everything that looks like a secret."""
    text = UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", "\n"))
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text
