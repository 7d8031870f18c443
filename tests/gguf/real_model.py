"""Every GGUF export of the bundled 135M model and the commands of docs/guides/serving.md: `make test-gguf` (5 minutes).

pytest does not collect this file by itself; `make test` has the same tests with a small random model.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.cli.local_stack.first_run import gguf_file
from app.system.artifact_directory import read_manifest
from tests.worker.exports.test_exporter import write_real_adapter
from worker.trainer.checkpoint.model_card import LLAMA_CPP
from worker.trainer.gguf.answers import CONTEXT_TOKENS, compare, greedy_answers
from worker.trainer.gguf.converter import script_directory
from worker.trainer.gguf.llama_cpp import LlamaCppModel

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
KINDS = ["F16", "Q8_0", "Q4_K_M", "adapter"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, directory = gguf_file(), tmp_path_factory.mktemp("real") / "base"
    assert source is not None
    program("worker.trainer.gguf.to_safetensors", source, directory)
    return directory


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter: its effect is large, so a lost one is noticed."""
    return write_real_adapter(base)(tmp_path_factory.mktemp("real-adapter") / "adapter", 4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_answers_as_the_merged_model(base: Path, adapter: Path, tmp_path: Path, kind: str) -> None:
    program("worker.trainer.gguf", base, adapter, tmp_path / "out", kind)
    check = read_manifest(tmp_path / "out")["gguf"]["check"]
    print(kind, json.dumps(check))
    assert check["same_most_likely_token"] >= check["required"]


def test_the_python_block_of_the_serving_page_answers(base: Path, adapter: Path, tmp_path: Path) -> None:
    program("worker.trainer.gguf", base, adapter, tmp_path / "my-model", "Q8_0")
    page = (ROOT / "docs" / "guides" / "serving.md").read_text(encoding="utf-8")
    (block,) = (each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "xllamacpp" in each)
    done: Any = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_the_converters_of_the_card_make_files_that_llama_cpp_loads(base: Path, adapter: Path, tmp_path: Path) -> None:
    """With the scripts of the wheel in place of a clone; the files answer as the merged model does."""
    (tmp_path / "llama.cpp").symlink_to(script_directory())
    (block,) = re.findall(r"```sh\n(.*?)```", LLAMA_CPP, re.DOTALL)
    lines = [line for line in block.splitlines() if line.startswith("python ")]
    assert len(lines) == 2
    script = "\n".join(lines).replace("BASE_DIRECTORY", str(base)).replace("ADAPTER_DIRECTORY", str(adapter))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environment, check=True, timeout=600)
    program("worker.trainer.merge", base, adapter, tmp_path / "merged")
    with LlamaCppModel(tmp_path / "base.gguf", tmp_path / "adapter.gguf", CONTEXT_TOKENS, threads=2) as model:
        print(json.dumps(compare(model, greedy_answers(tmp_path / "merged"), "Q8_0")))


def program(module: str, *arguments: object) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
