"""Side by side: what the base model and the tuned one answer to prompts that neither was trained on."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.errors import CliError, UsageError

ASKED = 12
SHOWN = 4
LETTERS = 400
PIPE_WIDTH = 140
WANTED = (
    'Each line is a conversation that ends with the wanted answer: {"messages": [..., {"role": "assistant", ...}]}.'
)
SAMPLER = "worker.trainer.compare_answers"  # a child process: torch is never imported here


@dataclass(frozen=True)
class Example:
    messages: list[dict[str, Any]]  # up to the question
    wanted: str


@dataclass(frozen=True)
class Answers:
    prompt: str
    wanted: str
    base: str
    tuned: str

    @property
    def base_is_right(self) -> bool:
        return self.base == self.wanted

    @property
    def tuned_is_right(self) -> bool:
        return self.tuned == self.wanted


def held_out(file: Path, count: int = ASKED) -> list[Example]:
    """The first examples of a file that was not trained on, their last message taken as the wanted answer.

    Raises UsageError for a file without such examples, OSError for one that cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text ({error.reason}).") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()][:count]
    if not numbered:
        raise UsageError(f"{file} has no lines. {WANTED}")
    return [_example(file, number, line) for number, line in numbered]


def _example(file: Path, number: int, line: str) -> Example:
    try:
        messages = json.loads(line)["messages"]
        *asked, last = messages
        if not (asked and last["role"] == "assistant" and isinstance(last["content"], str)):
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"Line {number} of {file} is no such example. {WANTED}") from None
    return Example(asked, last["content"])


def width_text(quantization: dict[str, Any] | None) -> str:
    """How `worker.trainer.compare_answers` loads the base, which is as the adapter was trained on it."""
    return f"{quantization['bits']} bits, as in training" if quantization else "16 bits"


def compare(base: Path, adapter: Path, examples: Sequence[Example]) -> list[Answers]:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as prompts:
        prompts.writelines(json.dumps({"messages": example.messages}) + "\n" for example in examples)
        prompts.flush()
        rows = _sample(base, adapter, Path(prompts.name))
    return [
        Answers(row["prompt"], example.wanted, row["base"], row["tuned"])
        for row, example in zip(rows, examples, strict=True)
    ]


def show(answers: Sequence[Answers], title: str = "The same held-out prompts") -> None:
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(title=title, title_style="bold", show_lines=True, expand=True)
    for title in ("prompt", "base model", "tuned model", "wanted"):
        table.add_column(title, ratio=1, overflow="fold")
    for one in answers[:SHOWN]:
        table.add_row(
            _short(one.prompt, "dim"),
            _short(one.base, _style(one.base_is_right)),
            _short(one.tuned, _style(one.tuned_is_right)),
            _short(one.wanted, "dim"),
        )
    console.print(table)
    console.print(_score(answers), style="bold", highlight=False)


def _score(answers: Sequence[Answers]) -> str:
    base, tuned = sum(one.base_is_right for one in answers), sum(one.tuned_is_right for one in answers)
    text = f"Exactly as wanted, of {len(answers)} held-out prompts: the base model {base}, the tuned model {tuned}."
    wanted = [_fields(one.wanted) for one in answers]
    total = sum(len(fields) for fields in wanted)
    if not total:
        return text
    base = sum(len(fields & _fields(one.base)) for fields, one in zip(wanted, answers, strict=True))
    tuned = sum(len(fields & _fields(one.tuned)) for fields, one in zip(wanted, answers, strict=True))
    return f"{text}\nFields right, of their {total}: the base model {base}, the tuned model {tuned}."


def _fields(answer: str) -> set[tuple[str, str]]:
    """The items of an answer that is a JSON object; none of any other answer."""
    try:
        return {(name, json.dumps(value)) for name, value in json.loads(answer).items()}
    except (ValueError, AttributeError):
        return set()


def _sample(base: Path, adapter: Path, prompts: Path) -> list[dict[str, str]]:
    command = [sys.executable, "-m", SAMPLER, str(base), str(adapter), str(prompts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().split("\n") or [""])[-1]
        raise CliError(f"The comparison failed ({last}). The adapter was verified and is whole.")
    return [json.loads(line) for line in done.stdout.split("\n") if line.strip()]


def _short(text: str, style: str) -> Text:
    return Text(text if len(text) <= LETTERS else text[:LETTERS] + " …", style=style)


def _style(is_right: bool) -> str:
    return "green" if is_right else "red"
