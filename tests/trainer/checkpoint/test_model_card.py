"""The model card: its Python and shell code runs, and its advice follows the compatibility rules of engines."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from typer.testing import CliRunner

from app.cli.main import app as command_line
from app.domain.artifacts.engines import VLLM_MAX_LORA_RANKS, Engine, compatibility, incompatibilities, largest_rank
from app.domain.jobs.spec import LoraSpec
from tests.trainer import plain_peft
from tests.trainer.helpers import make_spec, run_trainer
from worker.trainer import merge
from worker.trainer.checkpoint.model_card import merged_card, model_card

PAGE = Path(__file__).parents[3] / "docs" / "start" / "use-the-result.md"
PYTHON = re.compile(r"```python\n(.*?)```", re.S)
SHELL = re.compile(r"```sh\n(.*?)```", re.S)
NF4 = {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank 24": {"r": 24},
    "rsLoRA": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 40}},
    "rank above 512": {"rank_pattern": {"q_proj": 600}},
    "alpha_pattern": {"alpha_pattern": {"v_proj": 3}},
    "DoRA": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "everything": {"use_dora": True, "use_rslora": True, "modules_to_save": ["norm"], "rank_pattern": {"q_proj": 2}},
}
# What loads the adapter itself into an engine.
LOADERS = {
    Engine.VLLM: "--lora-modules tuned=ADAPTER_DIRECTORY",
    Engine.LLAMA_CPP: "convert_lora_to_gguf.py ADAPTER_DIRECTORY",
    Engine.SGLANG: "--lora-paths tuned=ADAPTER_DIRECTORY",
}
NOTE_COMMANDS = """\
#!/bin/sh
printf '%s\\0' "$(basename "$0")" "$@" '--end--' >> "$NOTED"
"""


def about(quantization: dict[str, Any] | None = None, **lora: Any) -> dict[str, Any]:
    lora_spec = LoraSpec.model_validate({"r": 16, "alpha": 32, "target_modules": ["q_proj"]} | lora)
    return {
        "base_model": {"name": "tiny"}, "step": 1, "epoch": 1.0, "trained_tokens": 5, "seed": 1, "method": "supervised",
        "metrics": {"train_loss": 0.5}, "quantization": quantization, "hyperparameters": {},
        "chat_template_kwargs": {"documents": [{"text": "it's"}]}, "lora": lora_spec.model_dump(),
        "compatibility": compatibility(lora_spec, "ftjob-1").model_dump(),
    }  # fmt: skip


def row(card: str, engine: Engine) -> str:
    (found,) = re.findall(rf"^\| {re.escape(engine)} [^|]*\| (.*) \|$", card, re.M)
    return str(found)


@pytest.mark.parametrize("kind", KINDS)
class TestEngines:
    def test_an_engine_loads_the_adapter_exactly_if_it_computes_the_same(self, kind: str) -> None:
        card, lora = model_card(about(**KINDS[kind])), LoraSpec.model_validate(about(**KINDS[kind])["lora"])
        for engine in Engine:
            found = incompatibilities(engine, lora)
            assert row(card, engine).startswith("merge it first") == bool(found), engine
            assert (LOADERS.get(engine, "no loader") in card) == (not found), engine
            for problem in found:
                assert problem.rule.reason in row(card, engine)

    def test_vllms_maximum_rank_is_accepted_and_admits_the_adapter(self, kind: str) -> None:
        card = model_card(about(**KINDS[kind]))
        largest = largest_rank(LoraSpec.model_validate(about(**KINDS[kind])["lora"]))
        given = [int(rank) for rank in re.findall(r"--max-lora-rank (\d+)", card)]
        assert given == [rank for rank in VLLM_MAX_LORA_RANKS if rank >= largest][:1] or "merge" in row(
            card, Engine.VLLM
        )


def test_the_card_agrees_with_the_manifest_about_the_class_of_the_base_model() -> None:
    manifest = about()
    manifest["compatibility"]["vllm"]["reasons"] = ["Not known (read)"]
    card = model_card(manifest)
    assert row(card, Engine.VLLM).endswith("Not known (read)")
    assert LOADERS[Engine.VLLM] not in card


class TestQuantizationNote:
    @pytest.mark.parametrize("width", [NF4, NF4 | {"type": "fp4", "compute_dtype": "float32"}])
    def test_the_base_can_be_loaded_with_its_options(self, tiny: Path, width: dict[str, Any]) -> None:
        (expression,) = re.findall(r"`quantization_config=(.*)`", model_card(about(width)))
        config = eval(expression, {"BitsAndBytesConfig": BitsAndBytesConfig, "torch": torch})
        with plain_peft.quiet():
            model = AutoModelForCausalLM.from_pretrained(tiny, quantization_config=config, dtype=torch.bfloat16)
        assert model.model.layers[0].self_attn.q_proj.quant_state.quant_type == width["type"]


@pytest.fixture(scope="module")
def adapter(tiny: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained")
    arguments = {"enable_thinking": False}
    code, log = run_trainer(make_spec(tiny, examples, r=24, max_steps=1, chat_template_kwargs=arguments), workdir)
    assert code == 0, log.last
    return workdir / str(log.last.directory)


class TestCommands:
    def test_the_python_block_answers_a_question(self, tiny: Path, adapter: Path) -> None:
        (block,) = PYTHON.findall(_filled((adapter / "README.md").read_text(), tiny, adapter))
        said = io.StringIO()
        with plain_peft.quiet(), contextlib.redirect_stdout(said):
            exec(compile(block, "README.md", "exec"), {})
        assert said.getvalue().endswith("\n")

    def test_the_python_block_of_the_page_answers_a_question(self, tiny: Path, adapter: Path) -> None:
        (block,) = [block for block in PYTHON.findall(PAGE.read_text(encoding="utf-8")) if '"BASE"' in block]
        block = block.replace('"BASE"', f'"{tiny}"').replace('"my-adapter"', f'"{adapter}"')
        with plain_peft.quiet(), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, "README.md", "exec"), {})

    def test_the_merged_cards_python_block_loads_the_merged_model(
        self, tiny: Path, adapter: Path, tmp_path: Path
    ) -> None:
        card = _filled((adapter / "README.md").read_text(), tiny, adapter, tmp_path / "merged")
        (arguments,) = re.findall(r"`python -m worker\.trainer\.merge (.*?)`", card)
        assert merge.main(shlex.split(arguments)) == 0
        merged = (tmp_path / "merged" / "README.md").read_text()
        (block,) = PYTHON.findall(merged.replace("MODEL_DIRECTORY", str(tmp_path / "merged")))
        world: dict[str, Any] = {}
        with plain_peft.quiet():
            exec(compile(block, "README.md", "exec"), world)
        assert world["model"].config.model_type == "llama"

    @pytest.mark.parametrize("kind", ["plain", "rank above 512", "everything"])
    def test_every_shell_block_runs_with_complete_arguments(self, kind: str, tmp_path: Path) -> None:
        ran = _run_noted(SHELL.findall(model_card(about(**KINDS[kind]))), tmp_path)
        assert {words[0] for words in ran} <= {"vllm", "curl", "git", "pip", "python", "llama-server", "ollama"}
        for words in (words for words in ran if words[0] == "curl"):
            assert json.loads(words[words.index("-d") + 1])["model"] in ("BASE_DIRECTORY", "tuned")
        assert (tmp_path / "Modelfile").read_text() == "FROM ./model.gguf\n"
        assert ran[-1] == ["ollama", "create", "tuned", "--file", "Modelfile"]

    def test_every_shell_block_of_the_merged_card_runs_with_complete_arguments(self, tmp_path: Path) -> None:
        card = merged_card({"base_model": {"name": "tiny"}, "adapter": {"step": 3}})
        assert ["vllm", "serve", "MODEL_DIRECTORY"] in _run_noted(SHELL.findall(card), tmp_path)

    def test_the_tunery_commands_and_options_exist(self) -> None:
        commands = re.findall(r"`tunery (.*?)`", model_card(about()))
        assert len(commands) == 3
        for command in commands:
            words = shlex.split(command)
            shown = CliRunner().invoke(command_line, [*words[:2], "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
            assert shown.exit_code == 0, command
            assert all(word in shown.stdout for word in words if word.startswith("--")), command


def _filled(card: str, base: Path, adapter: Path, model: Path | None = None) -> str:
    names = {"BASE_DIRECTORY": base, "ADAPTER_DIRECTORY": adapter, "MODEL_DIRECTORY": model}
    for name, path in names.items():
        card = card.replace(name, str(path))
    return card


def _run_noted(blocks: list[str], directory: Path) -> list[list[str]]:
    """Run shell blocks with programs that only record their arguments."""
    programs = directory / "bin"
    programs.mkdir()
    for name in ("vllm", "curl", "git", "pip", "python", "llama-server", "ollama"):
        (programs / name).write_text(NOTE_COMMANDS)
        (programs / name).chmod(0o755)
    noted = directory / "noted"
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "NOTED": str(noted)}
    for block in blocks:
        subprocess.run(["bash", "-euc", block], cwd=directory, env=environment, check=True)
    return [one.strip("\0").split("\0") for one in noted.read_text().split("--end--\0") if one]
