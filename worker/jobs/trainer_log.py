"""A trainer's standard error, kept for the operator: bounded, printable, without what looks like a secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO

MAX_LOG_BYTES = 10 << 20  # two halves: when one is full it steps aside, so that the end is always there
LINE_BYTES = 8 << 10
TAIL_LINES = 20

# ESC and NUL would reach an operator's terminal; keys and passwords would reach whoever is sent the log.
UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\xa0-\U0010ffff]")
# Each begins with a literal: with a `\w+` in front, a line of 8 kB takes a second, and the trainer waits for us.
SECRETS = (
    (re.compile(r"(tnry|hf|sk)[_-][A-Za-z0-9_-]{8,}"), r"\1_***"),
    (re.compile(r"(://[^\s:/@]{0,200}):[^\s@]{1,200}@"), r"\1:***@"),
    (re.compile(r"(?i)(authorization|password|secret)(\s*[=:]\s*)(?:bearer\s+)?[^\s,;]{6,}"), r"\1\2***"),
)


class TrainerLog:
    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._earlier = path.with_name(path.name + ".1")

    def keep(self, pipe: IO[bytes]) -> None:
        """Copy the pipe until its end. A full disk loses lines, never the trainer: the pipe is read on."""
        try:
            while chunk := pipe.readline(LINE_BYTES):
                self._append(clean(chunk.decode("utf-8", errors="replace")))
        except ValueError:  # the pipe was closed under us
            return

    def tail(self) -> str:
        try:
            return "\n".join(self.path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:])
        except OSError:
            return ""

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                is_full = file.tell() > self.max_bytes // 2
            if is_full:
                self.path.replace(self._earlier)
        except OSError:
            return


def clean(text: str) -> str:
    text = UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", "\n"))
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text
