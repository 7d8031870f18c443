"""Every command of docs/serving.md and of the model cards is run by a test, or has the reason why it is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.storage import LocalStorage
from tests.engines.__main__ import NOT_INSTALLED
from tests.factories import make_succeeded_job
from tests.serving import LiveServer
from worker.trainer.checkpoint import model_card as cards

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "serving.md"
SHELL = re.compile(r"```sh\n(.*?)```", re.S)
INLINE = re.compile(r"`((?:curl|llama-server|make|ollama|pip|python|tunery|vllm) [^`]+)`")
CARDS = (
    cards.CARD, cards.VLLM, cards.LLAMA_CPP, cards.MERGE, cards.MERGED_SERVING, cards.MERGED_CARD, cards.GGUF_CARD,
    cards.GGUF_ADAPTER_CARD,
    f"`{cards.SGLANG}`",
)  # fmt: skip

HERE = "test_the_command_that_shows_the_compatibility_prints_it"
TARGETS = "test_the_commands_of_the_page_run_in_their_order"
VLLM = "test_a_finished_job_is_delivered_and_the_check_finds_what_was_trained"
ASK = "test_vllm_answers_under_the_name_of_the_model_and_not_as_the_base_model"
PLUGIN = "test_the_plugin_finds_the_model_by_its_name"
ARGUMENTS = "test_every_shell_block_runs_with_complete_arguments"
MERGE = "test_the_merged_cards_python_block_loads_the_merged_model"
GGUF = "test_an_export_answers_as_the_merged_model"
XLLAMACPP = "test_the_python_block_of_the_serving_page_answers"
EXPORT = "test_waits_and_downloads_every_byte_verified"
MERGE_COMMAND = "test_makes_a_model_of_an_adapter_and_its_base"
CONVERTERS = "test_the_converters_of_the_card_make_files_that_llama_cpp_loads"
SENDER = "test_first_start_then_sigterm_then_kill_9_then_ctrl_c"

NO_OLLAMA = "not run: no package of a registry contains Ollama; the tests of the Modelfile read it"
NO_BINARY = f"not run: no wheel contains llama-server; its library and server, xllamacpp, are run by {XLLAMACPP}"
NO_SGLANG = "not run: SGLang has no build for CPUs; tests/engine_stand_in.py answers as it does"
NO_CLONE = f"not run: it needs the network; the same converters, from a wheel, are run by {CONVERTERS}"
SAME_VLLM = (
    f"run as `python -m vllm.entrypoints.openai.api_server`, because the wheel for CPUs has no `vllm serve`: {VLLM}"
)

# What a command begins with: the test that runs it, or the reason why none does.
COMMANDS = {
    "curl -s $TUNERY/v1/fine_tuning/jobs/ftjob-...": HERE,
    "pip install ./packages/tunery-vllm": PLUGIN,
    "export TUNERY_BASE_URL=": PLUGIN,
    "export VLLM_ALLOW_RUNTIME_LORA_UPDATING=True VLLM_PLUGINS=": PLUGIN,
    "vllm serve": SAME_VLLM,
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve": SAME_VLLM,
    "tunery jobs export ftjob-... --type gguf": EXPORT,
    "tunery targets": TARGETS,
    "tunery jobs deliver": TARGETS,
    "tunery jobs withdraw": TARGETS,
    "python -m worker.deliveries": SENDER,
    "make test-serving": VLLM,
    "for model in BASE_DIRECTORY tuned; do curl": f"{ARGUMENTS}, and against vLLM in {ASK}",
    "llama-server -m": NO_BINARY,
    "ollama create": NO_OLLAMA,
    "echo 'FROM ./model.gguf' > Modelfile": ARGUMENTS,
    "git clone https://github.com/ggml-org/llama.cpp": NO_CLONE,
    "pip install -r llama.cpp/requirements": NO_CLONE,
    "python llama.cpp/convert_hf_to_gguf.py": CONVERTERS,
    "python llama.cpp/convert_lora_to_gguf.py": CONVERTERS,
    "tunery models where": "test_prints_the_directory_that_an_adapter_needs",
    "tunery adapters merge": MERGE_COMMAND,
    "tunery jobs export JOB --output": EXPORT,
    "python -m worker.trainer.merge": MERGE,
    "python -m sglang.launch_server": NO_SGLANG,
}


def commands(text: str) -> list[str]:
    """The commands of the shell blocks, continued lines joined, and those within a line."""
    found = []
    for block in SHELL.findall(text.replace("{{", "{").replace("}}", "}").replace("\\\\\n", "\\\n")):
        joined = re.sub(r"\s*\\\n\s*", " ", block)
        joined = re.sub(r"(?s)\bdo\n(.*?)\ndone", lambda loop: "do " + " ".join(loop[1].split()) + "; done", joined)
        found += [line.partition("  #")[0].strip() for line in joined.splitlines() if line.strip()]
    return found + INLINE.findall(SHELL.sub("", text))


def test_every_command_is_run_by_a_test_or_has_the_reason_why_not() -> None:
    shown = commands(PAGE.read_text(encoding="utf-8")) + [each for card in CARDS for each in commands(card)]
    assert [each for each in shown if not each.startswith(tuple(COMMANDS))] == []
    assert [start for start in COMMANDS if not any(each.startswith(start) for each in shown)] == []


def test_the_tests_that_run_them_exist() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    named = {name for text in COMMANDS.values() for name in re.findall(r"\btest_\w+(?!\w*\.py)\b", text)}
    assert len(named) > 8
    assert [name for name in sorted(named) if not any(f"def {name}(" in source for source in sources)] == []


def test_the_command_that_shows_the_compatibility_prints_it(
    live_server: LiveServer, api_key: str, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
) -> None:
    with transaction(sessions) as session:
        job = make_succeeded_job(session, storage, project)
    (block,) = [block for block in SHELL.findall(PAGE.read_text(encoding="utf-8")) if '["compatibility"]' in block]
    environment = os.environ | {"TUNERY": live_server.root, "KEY": f"Authorization: Bearer {api_key}"}
    command = ["bash", "-euo", "pipefail", "-c", block.replace("ftjob-...", job.id)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["vllm"]["flags"][0] == "--enable-lora"


def test_an_environment_that_cannot_be_installed_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = os.environ | {"TUNERY_SERVING_HOME": str(tmp_path / "file" / "home")}
    command = [sys.executable, "-m", "tests.engines", "--install-only"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == NOT_INSTALLED == 3
    assert "cannot be installed here" in done.stderr
