"""Comparison of the answers of the base model and the tuned model to held-out prompts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.errors import CliError, UsageError
from app.domain.datasets.jsonl import MAX_LINE_BYTES, Finding

DEFAULT_PROMPT_COUNT = 12
MAX_ROWS_SHOWN = 4
MAX_ANSWER_CHARACTERS = 400
PIPE_WIDTH = 140
LINE_FORMAT = (
    "Each line must be a conversation that ends with the expected answer: "
    '{"messages": [..., {"role": "assistant", ...}]}.'
)
SAMPLER = "worker.trainer.answers.evaluation"  # runs in a child process: the CLI never imports torch


@dataclass(frozen=True)
class HeldOutExample:
    messages: list[dict[str, Any]]  # without the expected answer
    wanted: str


@dataclass(frozen=True)
class AnswerComparison:
    """The fields are the keys of the JSON output."""

    prompt: str
    wanted: str
    base: str
    tuned: str


def read_examples(file: Path, count: int = DEFAULT_PROMPT_COUNT) -> list[HeldOutExample]:
    """Read the first `count` examples of a held-out file; the last message of each is the expected answer.

    Raises UsageError if the file has no valid example, OSError if it cannot be read.
    """
    from app.domain.datasets.chat_template import content_text  # slow imports, which other commands do not need
    from app.domain.evaluations.rows import EvaluationRow, read_rows

    with file.open("rb") as opened:
        rows = list(islice(read_rows(opened, MAX_LINE_BYTES), count))
    if not rows:
        raise UsageError(f"{file} is empty. {LINE_FORMAT}")
    examples = []
    for row in rows:
        last = row.item["messages"][-1] if isinstance(row, EvaluationRow) and row.messages else {}
        if isinstance(row, Finding) or last.get("role") != "assistant" or last.get("content") is None:
            raise UsageError(f"Line {row.line} of {file} is not a valid example. {LINE_FORMAT}")
        examples.append(HeldOutExample(list(row.messages), content_text(last).strip()))
    return examples


def compare(base: Path, adapter: Path, examples: Sequence[HeldOutExample]) -> list[AnswerComparison]:
    """Generate the answers of both models to each example, as an evaluation does. Raises CliError if that fails."""
    from app.domain.evaluations.spec import ANSWERS, Answer, ModelRole

    with tempfile.TemporaryDirectory() as temporary:
        workdir, error = Path(temporary), ""
        try:
            _write_inputs(workdir, base, adapter.resolve(), examples)
            exit_code, _, error = run_module(SAMPLER, workdir)
        except (OSError, ValueError, KeyError) as raised:
            exit_code, error = 1, str(raised)
        if exit_code != 0:
            raise CliError(f"The comparison failed ({error}). The adapter itself was downloaded and verified.")
        _, *lines = (workdir / ANSWERS).read_bytes().splitlines()
    texts: dict[tuple[int, ModelRole], str] = {
        (answer.row, answer.model): answer.text for answer in map(Answer.model_validate_json, lines)
    }
    return [
        AnswerComparison(example.messages[-1]["content"], example.wanted, texts[row, "base"], texts[row, "adapter"])
        for row, example in enumerate(examples)
    ]


def print_comparison(answers: Sequence[AnswerComparison], title: str = "Held-out prompts") -> None:
    """Print a table of the first answers, and how many of all are right if an answer was wanted."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    has_wanted = any(answer.wanted for answer in answers)
    table = Table(title=title, title_style="bold", show_lines=True, expand=True)
    for column in ("prompt", "base model", "tuned model", *(["expected"] if has_wanted else [])):
        table.add_column(column, ratio=1, overflow="fold")
    for answer in answers[:MAX_ROWS_SHOWN] if has_wanted else answers:
        texts = (answer.base, answer.tuned)
        styles = ["green" if text == answer.wanted else "red" for text in texts] if has_wanted else ["", ""]
        cells = [_cell(answer.prompt, "dim"), *map(_cell, texts, styles), _cell(answer.wanted, "dim")]
        table.add_row(*cells[: len(table.columns)])
    console.print(table)
    if has_wanted:
        console.print(_score_text(answers), style="bold", highlight=False)


def _score_text(answers: Sequence[AnswerComparison]) -> str:
    base, tuned = (sum(getattr(each, model) == each.wanted for each in answers) for model in ("base", "tuned"))
    text = f"Exact matches of {len(answers)} held-out prompts: base model {base}, tuned model {tuned}."
    expected = [_json_items(each.wanted) for each in answers]
    if not (total := sum(map(len, expected))):
        return text
    base, tuned = (
        sum(len(items & _json_items(getattr(each, model))) for items, each in zip(expected, answers, strict=True))
        for model in ("base", "tuned")
    )
    return f"{text}\nCorrect JSON fields of {total}: base model {base}, tuned model {tuned}."


def _json_items(answer: str) -> set[tuple[str, str]]:
    """The items of an answer that is a JSON object; an empty set for any other answer."""
    from app.domain.evaluations.rows import parse_json_object

    return {(name, json.dumps(value)) for name, value in (parse_json_object(answer) or {}).items()}


def _write_inputs(workdir: Path, base: Path, adapter: Path, examples: Sequence[HeldOutExample]) -> None:
    """Write the files of the program that answers. Raises OSError, ValueError, KeyError."""
    from app.domain.datasets.template_arguments import given_arguments
    from app.domain.evaluations.graders import SHORT_ANSWERS
    from app.domain.evaluations.spec import PROMPTS, SPEC, GenerationSpec, Prompt
    from app.domain.jobs.layer_patterns import expand_patterns
    from app.domain.jobs.spec import BaseSpec, LoraSpec
    from app.system.artifact_directory import MANIFEST, read_manifest, sha256_file
    from app.system.limited_rendering import limited_renderer
    from app.system.model_files import linear_layers, stat_signature

    manifest = read_manifest(adapter)
    spec = GenerationSpec(
        base=BaseSpec(name=base.name, directory=base, manifest_sha256="", signature=stat_signature(base)),
        quantization=manifest.get("quantization"),
        dtype_is_free=True,  # that of the training may be slow on this machine
        lora=expand_patterns(LoraSpec.model_validate(manifest["lora"]), linear_layers(base)),
        adapter=adapter,
        adapter_manifest_sha256=sha256_file(adapter / MANIFEST),
        settings=SHORT_ANSWERS,
    )
    (workdir / SPEC).write_text(spec.model_dump_json(), encoding="utf-8")
    renderer = limited_renderer(base).with_arguments(given_arguments(manifest))
    with (workdir / PROMPTS).open("w", encoding="utf-8") as prompts:
        for row, example in enumerate(examples):
            tokens = renderer.prompt(example.messages)[1]
            prompts.write(Prompt(row=row, tokens=tokens).model_dump_json() + "\n")


def run_module(module: str, *arguments: Path) -> tuple[int, str, str]:
    """Run a module in a child process: its exit code, its output, and the last line of its standard error."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr.strip().split("\n")[-1]


def _cell(text: str, style: str) -> Text:
    return Text(text if len(text) <= MAX_ANSWER_CHARACTERS else text[:MAX_ANSWER_CHARACTERS] + " …", style=style)
