"""The commands that are printed after a job has succeeded can be run as they are printed."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from app.cli.output.progress import next_steps
from tests.commands.conftest import Tunery

PLAIN = {"r": 24, "alpha": 48, "target_modules": ["q_proj"]}


def job(model: str = "tiny", **lora: Any) -> dict[str, Any]:
    return {"id": "ftjob-0123456789abcdef01234567", "model": model, "lora": PLAIN | lora}


def commands(**arguments: Any) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in next_steps(job(**arguments)).split("\n")[1:]]


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}], ids=["plain", "DoRA"])
def test_each_is_a_command_with_the_options_that_it_has(bare_tunery: Tunery, lora: dict[str, Any]) -> None:
    for words in (words for words in commands(**lora) if words[0] == "tunery"):
        done = bare_tunery(*words[1:3], "--help", env={"COLUMNS": "200"})
        assert done.exit_code == 0
        assert all(word in done.out for word in words if word.startswith("-"))


def test_a_plain_adapter_is_served_as_it_is() -> None:
    assert commands()[-1] == [
        "vllm", "serve", "$BASE", "--enable-lora", "--max-lora-rank", "32", "--lora-modules",
        "tuned=ftjob-0123456789abcdef01234567",
    ]  # fmt: skip


def test_one_that_vllm_refuses_is_exported_and_served_merged() -> None:
    merged = "ftjob-0123456789abcdef01234567-merged"
    assert commands(use_dora=True)[-2:] == [
        ["tunery", "jobs", "export", "ftjob-0123456789abcdef01234567", "-o", merged],
        ["vllm", "serve", merged],
    ]


def test_the_base_of_a_model_that_was_trained_further_is_the_base_model() -> None:
    assert ["BASE=$(tunery", "models", "where", "tiny)"] in commands(model="ft:tiny:tunery:demo:1f2e3d4c")
