"""Reads Dockerfile.gpu, as far as ours goes: stages, instructions, continued lines and here-documents."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
FILE = ROOT / "Dockerfile.gpu"
HEREDOC = re.compile(r"<<-?'?(\w+)'?")


@dataclass(frozen=True)
class Instruction:
    keyword: str
    text: str  # continued lines joined
    heredoc: str = ""

    @property
    def words(self) -> list[str]:
        """Of the exec form, the strings; else what a shell would make of it."""
        return exec_form(self.text) if self.text.startswith("[") else shlex.split(self.text)


@dataclass
class Stage:
    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)


@dataclass
class Dockerfile:
    arguments: dict[str, str]  # before the first FROM
    stages: dict[str, Stage]

    def history(self, target: str) -> list[Instruction]:
        """Every instruction that made the image, from the outside base on."""
        stage = self.stages[target]
        return [*(self.history(stage.base) if stage.base in self.stages else []), *stage.instructions]

    def all_of(self, target: str, keyword: str) -> list[Instruction]:
        return [one for one in self.history(target) if one.keyword == keyword]

    def last(self, target: str, keyword: str) -> Instruction:
        return self.all_of(target, keyword)[-1]

    def environment(self, target: str) -> dict[str, str]:
        words = [word for env in self.all_of(target, "ENV") for word in env.words]
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    def command(self, target: str) -> list[str]:
        return self.last(target, "CMD").words

    def health_check(self, target: str) -> list[str]:
        return exec_form(self.last(target, "HEALTHCHECK").text.split("CMD", 1)[1])


def exec_form(text: str) -> list[str]:
    words: list[str] = json.loads(text)
    return words


def load() -> Dockerfile:
    found = Dockerfile({}, {})
    stage: Stage | None = None
    for one in parse(FILE.read_text(encoding="utf-8")):
        if one.keyword == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", one.text).groups()  # type: ignore[union-attr]
            stage = found.stages[name] = Stage(name, base)
        elif stage is not None:
            stage.instructions.append(one)
        else:
            name, _, default = one.text.partition("=")
            found.arguments[name] = default
    return found


def parse(text: str) -> Iterator[Instruction]:
    lines = iter(text.split("\n"))
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        while line.endswith("\\"):
            line = line[:-1] + next(lines).strip()
        keyword, _, rest = line.partition(" ")
        yield Instruction(keyword, rest.strip(), _heredoc(rest, lines))


def _heredoc(text: str, lines: Iterator[str]) -> str:
    opened = HEREDOC.search(text)
    if opened is None:
        return ""
    body = []
    for line in lines:
        if line == opened[1]:
            return "\n".join(body) + "\n"
        body.append(line)
    raise ValueError(f"{opened[1]} has no end")
